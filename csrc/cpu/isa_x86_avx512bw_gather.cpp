// The windows of convolutions copied 64 bytes at a time, for the kernels of every AVX-512 instruction set: a file of its
// own, because none of them has more to say about it. Contract: gather.h.
#define QK_ISA x86_avx512bw_gather
#include "gather.h"

namespace qk {
namespace x86_avx512bw_gather {
extern const Gather gather;
const Gather gather = gather_pixels<64>;
}  // namespace x86_avx512bw_gather
}  // namespace qk
