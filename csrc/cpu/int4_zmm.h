// What int4_direct.h wants of 512-bit registers, all but the products: they are the ISA's own.
#pragma once
#include "lanes_avx512.h"
#include "int4_rows.h"
#include "int4_scales512.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct ZmmLanes {
  using Reg = __m512i;
  using Float = __m512;
  static constexpr int kLanes = 16;
  static Reg zero() { return _mm512_setzero_si512(); }
  static Float zero_float() { return _mm512_setzero_ps(); }
  static Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Reg flip(Reg x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  template <int Bits>
  static Reg plane(Reg x, int i) {
    if (Bits == 8) return x;
    return _mm512_and_si512(i ? _mm512_srli_epi16(x, unsigned(i * Bits)) : x, _mm512_set1_epi8(char((1 << Bits) - 1)));
  }
  static Reg splat(const uint8_t* four) {
    int x;
    memcpy(&x, four, 4);
    return _mm512_set1_epi32(x);
  }
  static Reg start(int32_t x) { return _mm512_set1_epi32(x); }
  static Reg bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg words(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Reg mul(Reg x, Reg y) { return _mm512_mullo_epi32(x, y); }
  static Reg times(Reg x, int32_t y) { return _mm512_mullo_epi32(x, _mm512_set1_epi32(y)); }
  static Reg add(Reg x, Reg y) { return _mm512_add_epi32(x, y); }
  static Reg sub(Reg x, Reg y) { return _mm512_sub_epi32(x, y); }
  static Float to_float(Reg x) { return _mm512_cvtepi32_ps(x); }
  static Float scale(const void* scales, ScaleType type, idx at) { return scales_at(scales, type, at); }
  static Float fma(Float x, Float y, Float z) { return _mm512_fmadd_ps(x, y, z); }
  static void store(int32_t* p, Reg x) { _mm512_storeu_si512(p, x); }
  static void store_float(void* p, Float x) { _mm512_storeu_ps(static_cast<float*>(p), x); }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
