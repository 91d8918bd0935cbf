// Sixteen numbers of 32 bits: what the elementwise loops and the epilogue are written over, in AVX-512 F and BW.
//
// Every Lanes has the same members (lanes_avx2.h, lanes_portable.h). `some` versions touch exactly n ≤ kWidth elements,
// and read zeros behind them. min and max return their second operand where one is NaN, as the instructions do.
#pragma once
#include "../kernel.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Lanes {
  static constexpr int kWidth = 16;
  static constexpr bool kFma = true;  // and to_int gives the least integer for a NaN and for what does not fit
  using F = __m512;
  using I = __m512i;
  struct D {  // the same lanes as float64
    __m512d low, high;
  };

  static __mmask16 first(idx n) { return __mmask16((1u << n) - 1); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static D load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
  static F some(const float* p, idx n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static I some(const int32_t* p, idx n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  static D some(const double* p, idx n) {
    return {_mm512_maskz_loadu_pd(__mmask8(first(n)), p), _mm512_maskz_loadu_pd(__mmask8(first(n) >> 8), p + 8)};
  }
  static I load(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I load(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I load(const int16_t* p) { return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
  static I load(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
  static I some(const int8_t* p, idx n) { return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)); }
  static I some(const uint8_t* p, idx n) { return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)); }
  static I some(const int16_t* p, idx n) { return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(first(n), p)); }
  static I some(const uint16_t* p, idx n) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)); }

  static F splat(float x) { return _mm512_set1_ps(x); }
  static I splat(int32_t x) { return _mm512_set1_epi32(x); }
  static D splat(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }

  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F min(F x, F y) { return _mm512_min_ps(x, y); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }
  static F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }             // x·y + z, rounded once
  static F minus_product(F x, F y, F z) { return _mm512_fnmadd_ps(x, y, z); }  // z − x·y, rounded once
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I to_int(F x) { return _mm512_cvtps_epi32(x); }  // half to even, |x| < 2³¹

  static I add(I x, I y) { return _mm512_add_epi32(x, y); }
  static I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
  static I min(I x, I y) { return _mm512_min_epi32(x, y); }
  static I max(I x, I y) { return _mm512_max_epi32(x, y); }
  static I both(I x, I y) { return _mm512_and_si512(x, y); }
  static I shift_right(I x, I by) { return _mm512_srav_epi32(x, by); }  // arithmetic, by 0 … 31
  static I magnitude(F x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)); }
  static F size(F x) { return _mm512_castsi512_ps(magnitude(x)); }
  static F times_power(F x, I n) {  // x·2ⁿ, normal as x is
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(n, 23)));
  }
  static F pick(const float* table, I at) {  // table[at] of 32
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), at, _mm512_loadu_ps(table + 16));
  }
  static int32_t largest(I x) {
    int32_t lane[16], most = 0;
    _mm512_storeu_si512(lane, x);
    for (int i = 0; i < 16; ++i) most = lane[i] > most ? lane[i] : most;
    return most;
  }

  // (x·q + nudge) >> 31 of 64-bit products, which fits 32 bits (A5).
  static I high_half(I x, I q, I nudge) {
    const I low32 = _mm512_set1_epi64(0xFFFFFFFF);
    I even = _mm512_mul_epi32(x, q), odd = _mm512_mul_epi32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(q, 32));
    even = _mm512_srli_epi64(_mm512_add_epi64(even, _mm512_and_si512(nudge, low32)), 31);
    odd = _mm512_slli_epi64(_mm512_add_epi64(odd, _mm512_srli_epi64(nudge, 32)), 1);
    return _mm512_mask_blend_epi32(0xAAAA, even, odd);
  }

  // trunc(clamp(f64(x·m) + copysign(½, x))): A5's half_away.
  static I half_away(I x, D m, D low, D high) {
    const __m256i a = half_away(_mm512_castsi512_si256(x), m.low, low.low, high.low);
    const __m256i b = half_away(_mm512_extracti64x4_epi64(x, 1), m.high, low.high, high.high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  }

  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_some(float* p, F x, idx n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static void stream(float* p, F x) { _mm512_stream_ps(p, x); }  // 64-byte aligned, past the caches
  static void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static void fence() { _mm_sfence(); }

  // Four vectors, saturated to the type, in order. Stream: out is 64-byte aligned.
  template <bool Stream, class T>
  static void store4(T* out, I a, I b, I c, I d) {
    if constexpr (sizeof(T) == 1) {
      const I x = _mm512_packs_epi32(a, b), y = _mm512_packs_epi32(c, d);
      put<Stream>(out, in_order(T(-1) < T(0) ? _mm512_packs_epi16(x, y) : _mm512_packus_epi16(x, y)));
    } else {
      const I order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
      const bool is_signed = T(-1) < T(0);
      const I x = is_signed ? _mm512_packs_epi32(a, b) : _mm512_packus_epi32(a, b);
      const I y = is_signed ? _mm512_packs_epi32(c, d) : _mm512_packus_epi32(c, d);
      put<Stream>(out, _mm512_permutexvar_epi32(order, x));
      put<Stream>(out + 32, _mm512_permutexvar_epi32(order, y));
    }
  }
  static I splat16(int32_t x) { return _mm512_set1_epi16(int16_t(x)); }
  // 8-bit codes with a 16-bit number added to all, saturating at every step.
  template <bool Stream, class T>
  static void store4_plus(T* out, I a, I b, I c, I d, I plus) {
    const I x = _mm512_adds_epi16(_mm512_packs_epi32(a, b), plus),
            y = _mm512_adds_epi16(_mm512_packs_epi32(c, d), plus);
    put<Stream>(out, in_order(T(-1) < T(0) ? _mm512_packs_epi16(x, y) : _mm512_packus_epi16(x, y)));
  }
  static I splat8(int32_t x) { return _mm512_set1_epi8(char(x)); }
  // The same, and at least `least`.
  static void store4_codes(int8_t* out, I a, I b, I c, I d, I plus, I least) {
    const I x = _mm512_adds_epi16(_mm512_packs_epi32(a, b), plus),
            y = _mm512_adds_epi16(_mm512_packs_epi32(c, d), plus);
    put<false>(out, in_order(_mm512_max_epi8(_mm512_packs_epi16(x, y), least)));
  }
  static void store4_codes(uint8_t* out, I a, I b, I c, I d, I plus, I least) {
    const I x = _mm512_adds_epi16(_mm512_packs_epi32(a, b), plus),
            y = _mm512_adds_epi16(_mm512_packs_epi32(c, d), plus);
    put<false>(out, in_order(_mm512_max_epu8(_mm512_packus_epi16(x, y), least)));
  }
  static void store_some(int8_t* p, I x, idx n) { _mm_mask_storeu_epi8(p, first(n), _mm512_cvtsepi32_epi8(x)); }
  static void store_some(uint8_t* p, I x, idx n) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtusepi32_epi8(_mm512_max_epi32(x, _mm512_setzero_si512())));
  }
  static void store_some(int16_t* p, I x, idx n) { _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtsepi32_epi16(x)); }
  static void store_some(uint16_t* p, I x, idx n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtusepi32_epi16(_mm512_max_epi32(x, _mm512_setzero_si512())));
  }

 private:
  static I in_order(I bytes) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
  }
  template <bool Stream>
  static void put(void* p, I x) {
    if constexpr (Stream) _mm512_stream_si512(static_cast<I*>(p), x);
    else _mm512_storeu_si512(p, x);
  }
  static __m256i half_away(__m256i x, __m512d m, __m512d low, __m512d high) {
    const __m512d wide = _mm512_cvtepi32_pd(x);
    const I sign = _mm512_and_si512(_mm512_castpd_si512(wide), _mm512_set1_epi64(INT64_MIN));
    const I half = _mm512_or_si512(sign, _mm512_castpd_si512(_mm512_set1_pd(0.5)));
    const __m512d t = _mm512_add_pd(_mm512_mul_pd(wide, m), _mm512_castsi512_pd(half));
    return _mm512_cvttpd_epi32(_mm512_min_pd(_mm512_max_pd(t, low), high));
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
