// What int4_direct.h wants of 256-bit registers, all but the products: they are the ISA's own.
#pragma once
#include "int4_rows.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct YmmLanes {
  using Reg = __m256i;
  using Float = __m256;
  static constexpr int kLanes = 8;
  static Reg zero() { return _mm256_setzero_si256(); }
  static Float zero_float() { return _mm256_set1_ps(0.0f); }
  static Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Reg flip(Reg x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
  template <int Bits>
  static Reg plane(Reg x, int i) {
    if (Bits == 8) return x;
    return _mm256_and_si256(i ? _mm256_srli_epi16(x, i * Bits) : x, _mm256_set1_epi8(char((1 << Bits) - 1)));
  }
  static Reg splat(const uint8_t* four) {
    int x;
    memcpy(&x, four, 4);
    return _mm256_set1_epi32(x);
  }
  static Reg start(int32_t x) { return _mm256_set1_epi32(x); }
  static Reg bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg words(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Reg mul(Reg x, Reg y) { return _mm256_mullo_epi32(x, y); }
  static Reg times(Reg x, int32_t y) { return _mm256_mullo_epi32(x, _mm256_set1_epi32(y)); }
  static Reg add(Reg x, Reg y) { return _mm256_add_epi32(x, y); }
  static Reg sub(Reg x, Reg y) { return _mm256_sub_epi32(x, y); }
  static Float to_float(Reg x) { return _mm256_cvtepi32_ps(x); }
  static Float scale(const void* scales, ScaleType type, idx at) {
    if (type == kScaleF32) return _mm256_loadu_ps(static_cast<const float*>(scales) + at);
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(scales) + at));
    const Reg wide = _mm256_cvtepu16_epi32(half);
    if (type == kScaleBf16) return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    // A scale is > 0 and finite: its exponent and fraction, moved into place, times 2¹¹² are exact, subnormals too.
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 13)), _mm256_set1_ps(0x1p112f));
  }
  static Float fma(Float x, Float y, Float z) { return _mm256_fmadd_ps(x, y, z); }
  static void store(int32_t* p, Reg x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static void store_float(void* p, Float x) { _mm256_storeu_ps(static_cast<float*>(p), x); }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
