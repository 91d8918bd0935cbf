// What int4_floats.h wants of 512-bit registers: a code of 4 or 2 bits becomes a float by a table of 16 in a register,
// vpermps, whose index is the lowest 4 bits of a lane, so that nothing is masked: shift, look up, take the zero point off,
// fma.
//
// Why 6 rows: 24 sums in 4 parts, a line, a code, the table, the zero point in 32 registers.
#pragma once
#include "int4_zmm.h"

namespace qk {
namespace QK_ISA {
namespace {

struct ZmmFloats : ZmmLanes {
  static constexpr int kFloatRows = 6;
  template <int Bits>
  static Float value(Reg x, int shift) {
    const Reg low = shift ? _mm512_srli_epi32(x, unsigned(shift)) : x;
    if (Bits == 8) {
      constexpr int kAndOr = 0xEA;  // (first & second) | third
      return _mm512_castsi512_ps(
          _mm512_ternarylogic_epi32(low, _mm512_set1_epi32(0xFF), _mm512_set1_epi32(0x4B000000), kAndOr));
    }
    return _mm512_permutexvar_ps(low, _mm512_loadu_ps(Bits == 4 ? kOfFour : kOfTwo));
  }
  static Float sub_float(Float x, Float y) { return _mm512_sub_ps(x, y); }
  static Float add_float(Float x, Float y) { return _mm512_add_ps(x, y); }
  static Float splat_float(float x) { return _mm512_set1_ps(x); }
  static constexpr float kOfFour[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static constexpr float kOfTwo[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
