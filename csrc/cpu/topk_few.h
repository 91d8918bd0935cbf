// Rows of a corpus against few queries, as dot products of 16-bit integers: pmaddwd, exact for every pair of types.
//
// A corpus that no cache holds is read once, and reading it takes longer than these products: 4 instructions for 16 bytes
// of a row and one query, 10 for four. Why not the tiles of a product, which waste 15 of 16 columns: they copy rows into
// panels first; 1 M × 384 took 45 ms where reading alone takes 27. Why not vpdpbusd: nothing is left to gain.
#pragma once
#include <string.h>

#include "../kernel.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace qk {
namespace {

#if defined(__SSE2__)
bool has_avx2() { return __builtin_cpu_supports("avx2"); }  // what this CPU has, emulated kernels or not
#else
bool has_avx2() { return false; }
#endif

// Scores of so many rows: [row][query], inner products, or distances less than nothing (−Σ(q − c)²).
using Dots = void (*)(const uint8_t* corpus, idx rows, idx row, idx dims, const int16_t* queries, int32_t* scores);

constexpr idx kLaneBytes = 16;

// [query][dims to 16], zeros behind them.
inline void widen_queries(const uint8_t* from, idx count, idx dims, idx row, idx column, bool is_signed, int16_t* to) {
  for (idx j = 0; j < count; ++j, from += row, to += padded(dims, kLaneBytes)) {
    memset(to, 0, size_t(padded(dims, kLaneBytes)) * 2);
    for (idx k = 0; k < dims; ++k) to[k] = is_signed ? int16_t(int8_t(from[k * column])) : int16_t(from[k * column]);
  }
}

#if defined(__SSE2__)
#define QK_AVX2 __attribute__((target("avx2")))

template <bool Signed>
QK_AVX2 inline __m256i widened(const uint8_t* c) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(c));
  return Signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
}

template <bool Distance>
QK_AVX2 inline __m256i added(__m256i sum, __m256i c, const int16_t* query) {
  const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query));
  const __m256i x = Distance ? _mm256_sub_epi16(q, c) : q;
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, Distance ? x : c));
}

QK_AVX2 inline int32_t total(__m256i sum) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

template <bool Signed, bool Distance, int Queries>
QK_AVX2 void dots_avx2(const uint8_t* corpus, idx rows, idx row, idx dims, const int16_t* queries, int32_t* scores) {
  constexpr idx kAhead = 2048, kLine = 64;  // bytes: fetched ahead, and taken at a time
  const idx whole = dims / kLaneBytes * kLaneBytes, step = padded(dims, kLaneBytes);
  for (idx i = 0; i < rows; ++i, corpus += row, scores += Queries) {
    __m256i sums[Queries], others[Queries];  // two chains of additions
    for (int j = 0; j < Queries; ++j) sums[j] = others[j] = _mm256_setzero_si256();
    idx k = 0;
    for (; k + kLine <= whole; k += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(corpus + k) + kAhead, _MM_HINT_T0);
      for (idx t = k; t < k + kLine; t += 2 * kLaneBytes) {
        const __m256i c = widened<Signed>(corpus + t), d = widened<Signed>(corpus + t + kLaneBytes);
        for (int j = 0; j < Queries; ++j) {
          const int16_t* const query = queries + j * step + t;
          sums[j] = added<Distance>(sums[j], c, query);
          others[j] = added<Distance>(others[j], d, query + kLaneBytes);
        }
      }
    }
    for (; k < whole; k += kLaneBytes) {
      const __m256i c = widened<Signed>(corpus + k);
      for (int j = 0; j < Queries; ++j) sums[j] = added<Distance>(sums[j], c, queries + j * step + k);
    }
    if (whole < dims) {
      uint8_t last[kLaneBytes] = {};
      memcpy(last, corpus + whole, size_t(dims - whole));
      const __m256i c = widened<Signed>(last);
      for (int j = 0; j < Queries; ++j) sums[j] = added<Distance>(sums[j], c, queries + j * step + whole);
    }
    for (int j = 0; j < Queries; ++j) {
      const int32_t score = total(_mm256_add_epi32(sums[j], others[j]));
      scores[j] = Distance ? -score : score;
    }
  }
}

template <bool Signed, bool Distance>
Dots dots_of_queries(int queries) {
  static constexpr Dots all[] = {dots_avx2<Signed, Distance, 1>, dots_avx2<Signed, Distance, 2>,
                                 dots_avx2<Signed, Distance, 3>, dots_avx2<Signed, Distance, 4>};
  return all[queries - 1];
}

// Null where this CPU has none.
Dots dots_of(int queries, bool is_signed, bool distance) {
  if (!has_avx2()) return nullptr;
  if (distance) return is_signed ? dots_of_queries<true, true>(queries) : dots_of_queries<false, true>(queries);
  return is_signed ? dots_of_queries<true, false>(queries) : dots_of_queries<false, false>(queries);
}
#else
Dots dots_of(int, bool, bool) { return nullptr; }
#endif

// ---------------------------------------------------------------- Σc² of a row, for distances by way of a product

template <bool Signed>
int64_t squares(const uint8_t* c, idx n, idx step) {
  int64_t sum = 0;
  for (idx i = 0; i < n; ++i) {
    const int v = Signed ? int(int8_t(c[i * step])) : int(c[i * step]);
    sum += v * v;
  }
  return sum;
}

#if defined(__SSE2__)
// 65 025 · 2 fits 32 bits 16 000 times, and a lane sees an eighth of n.
template <bool Signed>
__attribute__((target("avx2"))) int64_t squares_avx2(const uint8_t* c, idx n, idx step) {
  if (step != 1) return squares<Signed>(c, n, step);
  __m256i sum = _mm256_setzero_si256();
  idx i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(c + i));
    const __m256i wide = Signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, wide));
  }
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
  int64_t total = squares<Signed>(c + i, n - i, 1);
  for (const uint32_t lane : lanes) total += lane;
  return total;
}
#else
template <bool Signed>
int64_t squares_avx2(const uint8_t* c, idx n, idx step) {
  return squares<Signed>(c, n, step);
}
#endif

using Squares = int64_t (*)(const uint8_t*, idx, idx);

Squares squares_of(bool is_signed) {
  if (has_avx2()) return is_signed ? squares_avx2<true> : squares_avx2<false>;
  return is_signed ? squares<true> : squares<false>;
}

}  // namespace
}  // namespace qk
