// weight_only, weights of int4.h, x86_avx512bw. Contract: int4_floats.h.
#define QK_ISA x86_avx512bw
#include "int4_zmm_floats.h"

namespace qk {
namespace x86_avx512bw {
namespace { constexpr double kFloatGops = 90, kCallUs = 0.1, kGbS = 18; }  // namespace

static const Int4Row int4_rows[] = {QK_FLOAT_ROWS(ZmmFloats, "6x16")};
const Int4List int4_list = {int4_rows, 4};

}  // namespace x86_avx512bw
}  // namespace qk
