// Four rows of 32 bytes → 32 quads, in order: dwords are spread over the halves first, so that the unpacking, which
// stays inside of a half, leaves the order right.
#pragma once
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Bytes256 {
  static constexpr idx kBytes = 32;
  template <unsigned Flip>
  static __m256i load(const uint8_t* p) {
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i x = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), order);
    return Flip ? _mm256_xor_si256(x, _mm256_set1_epi32(int(Flip * 0x01010101u))) : x;
  }
  template <unsigned Flip>
  static void interleave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* dst) {
    const __m256i x = load<Flip>(a), y = load<Flip>(b), z = load<Flip>(c), w = load<Flip>(d);
    const __m256i xy = _mm256_unpacklo_epi8(x, y), zw = _mm256_unpacklo_epi8(z, w);
    const __m256i XY = _mm256_unpackhi_epi8(x, y), ZW = _mm256_unpackhi_epi8(z, w);
    __m256i* to = reinterpret_cast<__m256i*>(dst);
    _mm256_storeu_si256(to, _mm256_unpacklo_epi16(xy, zw));
    _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(xy, zw));
    _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi16(XY, ZW));
    _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi16(XY, ZW));
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
