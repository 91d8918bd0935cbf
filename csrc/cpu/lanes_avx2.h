// Eight numbers of 32 bits: Lanes (lanes_avx512.h says what each member does) in AVX2 and FMA.
#pragma once
#include <string.h>

#include "../kernel.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Lanes {
  static constexpr int kWidth = 8;
  static constexpr bool kFma = true;
  using F = __m256;
  using I = __m256i;
  struct D {
    __m256d low, high;
  };

  static I first(idx n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static D load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  static I load(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
  static I load(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
  static I load(const int16_t* p) { return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I load(const uint16_t* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
  template <class T>
  static auto padded_load(const T* p, idx n) {
    T lane[8] = {};
    for (idx i = 0; i < n; ++i) lane[i] = p[i];
    return load(lane);
  }
  static F some(const float* p, idx n) { return _mm256_maskload_ps(p, first(n)); }
  static I some(const int32_t* p, idx n) { return _mm256_maskload_epi32(p, first(n)); }
  static D some(const double* p, idx n) { return padded_load(p, n); }
  static I some(const int8_t* p, idx n) { return padded_load(p, n); }
  static I some(const uint8_t* p, idx n) { return padded_load(p, n); }
  static I some(const int16_t* p, idx n) { return padded_load(p, n); }
  static I some(const uint16_t* p, idx n) { return padded_load(p, n); }

  static F splat(float x) { return _mm256_set1_ps(x); }
  static I splat(int32_t x) { return _mm256_set1_epi32(x); }
  static D splat(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }

  static F add(F x, F y) { return _mm256_add_ps(x, y); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F div(F x, F y) { return _mm256_div_ps(x, y); }
  static F min(F x, F y) { return _mm256_min_ps(x, y); }
  static F max(F x, F y) { return _mm256_max_ps(x, y); }
  static F fma(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
  static F minus_product(F x, F y, F z) { return _mm256_fnmadd_ps(x, y, z); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I to_int(F x) { return _mm256_cvtps_epi32(x); }

  static I add(I x, I y) { return _mm256_add_epi32(x, y); }
  static I sub(I x, I y) { return _mm256_sub_epi32(x, y); }
  static I min(I x, I y) { return _mm256_min_epi32(x, y); }
  static I max(I x, I y) { return _mm256_max_epi32(x, y); }
  static I both(I x, I y) { return _mm256_and_si256(x, y); }
  static I shift_right(I x, I by) { return _mm256_srav_epi32(x, by); }
  static I magnitude(F x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF)); }
  static F size(F x) { return _mm256_castsi256_ps(magnitude(x)); }
  static F times_power(F x, I n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
  }
  static F pick(const float* table, I at) { return _mm256_i32gather_ps(table, at, 4); }
  static int32_t largest(I x) {
    int32_t lane[8], most = 0;
    store(lane, x);
    for (int i = 0; i < 8; ++i) most = lane[i] > most ? lane[i] : most;
    return most;
  }

  static I high_half(I x, I q, I nudge) {
    const I low32 = _mm256_set1_epi64x(0xFFFFFFFF);
    I even = _mm256_mul_epi32(x, q), odd = _mm256_mul_epi32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(q, 32));
    even = _mm256_srli_epi64(_mm256_add_epi64(even, _mm256_and_si256(nudge, low32)), 31);
    odd = _mm256_slli_epi64(_mm256_add_epi64(odd, _mm256_srli_epi64(nudge, 32)), 1);
    return _mm256_blend_epi32(even, odd, 0xAA);
  }

  static I half_away(I x, D m, D low, D high) {
    const __m128i a = half_away(_mm256_castsi256_si128(x), m.low, low.low, high.low);
    const __m128i b = half_away(_mm256_extracti128_si256(x, 1), m.high, low.high, high.high);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  }

  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_some(float* p, F x, idx n) { _mm256_maskstore_ps(p, first(n), x); }
  static void stream(float* p, F x) { _mm256_stream_ps(p, x); }
  static void store(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x); }
  static void fence() { _mm_sfence(); }

  template <bool Stream, class T>
  static void store4(T* out, I a, I b, I c, I d) {
    if constexpr (sizeof(T) == 1) {
      const I x = _mm256_packs_epi32(a, b), y = _mm256_packs_epi32(c, d);
      put<Stream>(out, in_order(T(-1) < T(0) ? _mm256_packs_epi16(x, y) : _mm256_packus_epi16(x, y)));
    } else {
      const bool is_signed = T(-1) < T(0);
      const I x = is_signed ? _mm256_packs_epi32(a, b) : _mm256_packus_epi32(a, b);
      const I y = is_signed ? _mm256_packs_epi32(c, d) : _mm256_packus_epi32(c, d);
      put<Stream>(out, _mm256_permute4x64_epi64(x, 0xD8));
      put<Stream>(out + 16, _mm256_permute4x64_epi64(y, 0xD8));
    }
  }
  static I splat16(int32_t x) { return _mm256_set1_epi16(int16_t(x)); }
  template <bool Stream, class T>
  static void store4_plus(T* out, I a, I b, I c, I d, I plus) {
    const I x = _mm256_adds_epi16(_mm256_packs_epi32(a, b), plus),
            y = _mm256_adds_epi16(_mm256_packs_epi32(c, d), plus);
    put<Stream>(out, in_order(T(-1) < T(0) ? _mm256_packs_epi16(x, y) : _mm256_packus_epi16(x, y)));
  }
  static I splat8(int32_t x) { return _mm256_set1_epi8(char(x)); }
  // The same, and at least `least`.
  static void store4_codes(int8_t* out, I a, I b, I c, I d, I plus, I least) {
    const I x = _mm256_adds_epi16(_mm256_packs_epi32(a, b), plus),
            y = _mm256_adds_epi16(_mm256_packs_epi32(c, d), plus);
    put<false>(out, in_order(_mm256_max_epi8(_mm256_packs_epi16(x, y), least)));
  }
  static void store4_codes(uint8_t* out, I a, I b, I c, I d, I plus, I least) {
    const I x = _mm256_adds_epi16(_mm256_packs_epi32(a, b), plus),
            y = _mm256_adds_epi16(_mm256_packs_epi32(c, d), plus);
    put<false>(out, in_order(_mm256_max_epu8(_mm256_packus_epi16(x, y), least)));
  }
  template <class T>
  static void store_some(T* p, I x, idx n) {
    T lane[32];
    store4<false>(lane, x, x, x, x);
    for (idx i = 0; i < n; ++i) p[i] = lane[i];
  }

 private:
  static I in_order(I bytes) { return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
  template <bool Stream>
  static void put(void* p, I x) {
    if constexpr (Stream) _mm256_stream_si256(static_cast<I*>(p), x);
    else _mm256_storeu_si256(static_cast<I*>(p), x);
  }
  static __m128i half_away(__m128i x, __m256d m, __m256d low, __m256d high) {
    const __m256d wide = _mm256_cvtepi32_pd(x);
    const __m256d sign = _mm256_and_pd(wide, _mm256_set1_pd(-0.0));
    const __m256d t = _mm256_add_pd(_mm256_mul_pd(wide, m), _mm256_or_pd(sign, _mm256_set1_pd(0.5)));
    return _mm256_cvttpd_epi32(_mm256_min_pd(_mm256_max_pd(t, low), high));
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
