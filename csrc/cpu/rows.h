// The lists that the ISA files export. One line here and one in rows.cpp is all that an ISA needs beside its file.
#pragma once
#include "../elementwise.h"
#include "../pool.h"
#include "conv.h"
#include "int4.h"

namespace qk {
namespace portable {
extern const RowList list;
extern const Int4List int4_list;
extern const DepthwiseList depthwise;
extern const ElementwiseList elementwise_list;
extern const PoolList pool_list;
}  // namespace portable
namespace x86_avx2 {
extern const RowList list;
extern const Int4List int4_list;
extern const DepthwiseList depthwise;
extern const ElementwiseList elementwise_list;
extern const PoolList pool_list;
}  // namespace x86_avx2
namespace x86_avxvnni {
extern const RowList list;
extern const Int4List int4_list;
extern const DepthwiseList depthwise;
}  // namespace x86_avxvnni
namespace x86_avx512bw {
extern const RowList list;
extern const Int4List int4_list;
extern const DepthwiseList depthwise;
extern const ElementwiseList elementwise_list;
extern const PoolList pool_list;
}  // namespace x86_avx512bw
namespace x86_avx512vnni {
extern const RowList list;
extern const Int4List int4_list;
extern const DepthwiseList depthwise;
}  // namespace x86_avx512vnni
namespace x86_avx512vnni_conv { extern const DirectList grouped; }
namespace x86_amx {
extern const RowList list;
extern const Int4List int4_list;
}  // namespace x86_amx
namespace x86_amx_conv { extern const DirectList direct; }
namespace x86_amxbf16 { extern const Int4List int4_list; }  // namespace x86_amxbf16
}  // namespace qk
