// Scales of a group, 16 columns side by side, as float32; stored so, or in 16 bits. And its zero points.
#pragma once
#include "int4.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

QK_INLINE inline __m512 scales_at(const void* scales, ScaleType type, idx at) {
  if (type == kScaleF32) return _mm512_loadu_ps(static_cast<const float*>(scales) + at);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(scales) + at));
  return type == kScaleF16 ? _mm512_cvtph_ps(half)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

QK_INLINE inline __m512 zeros_at(const Int4& g, idx at) {
  return _mm512_cvtepi32_ps(g.zeros
                                ? _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g.zeros + at)))
                                : _mm512_set1_epi32(g.zero));
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
