// Four rows of 64 bytes → 64 quads, in order; as interleave256.h.
#pragma once
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Bytes512 {
  static constexpr idx kBytes = 64;
  template <unsigned Flip>
  static __m512i load(const uint8_t* p) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i x = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p));
    return Flip ? _mm512_xor_si512(x, _mm512_set1_epi32(int(Flip * 0x01010101u))) : x;
  }
  template <unsigned Flip>
  static void interleave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* dst) {
    const __m512i x = load<Flip>(a), y = load<Flip>(b), z = load<Flip>(c), w = load<Flip>(d);
    const __m512i xy = _mm512_unpacklo_epi8(x, y), zw = _mm512_unpacklo_epi8(z, w);
    const __m512i XY = _mm512_unpackhi_epi8(x, y), ZW = _mm512_unpackhi_epi8(z, w);
    _mm512_storeu_si512(dst, _mm512_unpacklo_epi16(xy, zw));
    _mm512_storeu_si512(dst + 64, _mm512_unpackhi_epi16(xy, zw));
    _mm512_storeu_si512(dst + 128, _mm512_unpacklo_epi16(XY, ZW));
    _mm512_storeu_si512(dst + 192, _mm512_unpackhi_epi16(XY, ZW));
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
