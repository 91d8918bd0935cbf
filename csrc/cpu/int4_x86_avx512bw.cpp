// weight_only, 4- and 2-bit weights, x86_avx512bw: a code becomes a float by a table of 16 in a register, vpermps, whose
// index is the lowest 4 bits of a lane, so that nothing is masked: shift, look up, take the zero point off, fma.
//
// Why 6 rows: 24 sums in 4 parts, a line, a code, the table, the zero point in 32 registers.
// Contract: int4_floats.h.
#define QK_ISA x86_avx512bw
#include "int4_zmm.h"

namespace qk {
namespace x86_avx512bw {
namespace {

constexpr double kFloatGops = 90, kCallUs = 0.1, kGbS = 18;

struct Zmm : ZmmLanes {
  static constexpr int kFloatRows = 6;
  template <int Bits>
  static Float value(Reg x, int shift) {
    const Reg low = shift ? _mm512_srli_epi32(x, unsigned(shift)) : x;
    return _mm512_permutexvar_ps(low, _mm512_loadu_ps(Bits == 4 ? kOfFour : kOfTwo));
  }
  static Float sub_float(Float x, Float y) { return _mm512_sub_ps(x, y); }
  static Float add_float(Float x, Float y) { return _mm512_add_ps(x, y); }
  static Float splat_float(float x) { return _mm512_set1_ps(x); }
  static constexpr float kOfFour[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static constexpr float kOfTwo[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
};

}  // namespace

static const Int4Row int4_rows[] = {QK_FLOAT_ROW(Zmm, "6x16", 4, "u4"), QK_FLOAT_ROW(Zmm, "6x16", 2, "u2")};
const Int4List int4_list = {int4_rows, 2};

}  // namespace x86_avx512bw
}  // namespace qk
