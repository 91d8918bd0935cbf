// Packing is two small transpositions: 4 rows of 16 columns → 16 groups of 4 k (rows adjacent in memory), or
// 16 columns of 4 k each (k adjacent). Full groups go through registers on SSE2; edges and odd strides byte by byte.
#include "pack.h"

#include <string.h>

#include "features.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace qk {
namespace {

constexpr idx kGroupBytes = kPanel * kGroup;
constexpr idx kSideBySide = 8;  // panels: two cache lines of a row

// One group: k0…k0+3 of columns j0…j0+15, zeros outside of the matrix.
void pack_edge(const PlainWeights& w, idx k0, idx j0, uint8_t* dst) {
  const idx ks = min_of(kGroup, w.k - k0), js = min_of(kPanel, w.n - j0);
  memset(dst, 0, kGroupBytes);
  for (idx t = 0; t < ks; ++t)
    for (idx j = 0; j < js; ++j) dst[j * kGroup + t] = w.data[(k0 + t) * w.row + (j0 + j) * w.col];
}

#if defined(__SSE2__)

inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store16(uint8_t* p, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }

// Columns adjacent: interleave four rows of 16 bytes.
inline void pack_rows(const uint8_t* src, idx row, uint8_t* dst) {
  const __m128i a = load16(src), b = load16(src + row), c = load16(src + 2 * row), d = load16(src + 3 * row);
  const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
  const __m128i AB = _mm_unpackhi_epi8(a, b), CD = _mm_unpackhi_epi8(c, d);
  store16(dst, _mm_unpacklo_epi16(ab, cd));
  store16(dst + 16, _mm_unpackhi_epi16(ab, cd));
  store16(dst + 32, _mm_unpacklo_epi16(AB, CD));
  store16(dst + 48, _mm_unpackhi_epi16(AB, CD));
}

// k adjacent: four groups at once, a 16×16 block seen as 4×4 blocks of 32-bit words, transposed.
inline void pack_columns(const uint8_t* src, idx col, uint8_t* dst) {
  for (idx j = 0; j < kPanel; j += 4) {
    const __m128i a = load16(src + j * col), b = load16(src + (j + 1) * col);
    const __m128i c = load16(src + (j + 2) * col), d = load16(src + (j + 3) * col);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i AB = _mm_unpackhi_epi32(a, b), CD = _mm_unpackhi_epi32(c, d);
    uint8_t* to = dst + j * kGroup;
    store16(to, _mm_unpacklo_epi64(ab, cd));
    store16(to + kGroupBytes, _mm_unpackhi_epi64(ab, cd));
    store16(to + 2 * kGroupBytes, _mm_unpacklo_epi64(AB, CD));
    store16(to + 3 * kGroupBytes, _mm_unpackhi_epi64(AB, CD));
  }
}

#else

inline void pack_rows(const uint8_t* src, idx row, uint8_t* dst) {
  for (idx j = 0; j < kPanel; ++j)
    for (idx t = 0; t < kGroup; ++t) dst[j * kGroup + t] = src[t * row + j];
}

inline void pack_columns(const uint8_t* src, idx col, uint8_t* dst) {
  for (idx q = 0; q < 4; ++q)
    for (idx j = 0; j < kPanel; ++j) memcpy(dst + q * kGroupBytes + j * kGroup, src + j * col + q * kGroup, kGroup);
}

#endif

// Panels side by side, so that a cache line of a row is read once: `count` whole panels, columns adjacent.
void pack_adjacent(const PlainWeights& w, idx k_whole, idx j0, idx count, uint8_t* dst) {
  idx k = 0;
  for (; k + kGroup <= w.k; k += kGroup)
    for (idx p = 0; p < count; ++p)
      pack_rows(w.data + k * w.row + j0 + p * kPanel, w.row, dst + (p * k_whole + k) * kPanel);
  for (idx p = 0; p < count; ++p) {
    uint8_t* const panel = dst + p * k_whole * kPanel;
    if (k < w.k) pack_edge(w, k, j0 + p * kPanel, panel + k * kPanel);
    const idx end = padded(w.k, kGroup);
    memset(panel + end * kPanel, 0, size_t((k_whole - end) * kPanel));
  }
}

void pack_panel(const PlainWeights& w, idx k_whole, idx j0, uint8_t* dst) {
  idx k = 0;
  if (j0 + kPanel <= w.n && w.row == 1)
    for (; k + 4 * kGroup <= w.k; k += 4 * kGroup) pack_columns(w.data + k + j0 * w.col, w.col, dst + k * kPanel);
  for (; k < w.k; k += kGroup) pack_edge(w, k, j0, dst + k * kPanel);
  if (k < k_whole) memset(dst + k * kPanel, 0, size_t((k_whole - k) * kPanel));
}

#if defined(__SSE2__)

// Per 16 bytes (4 columns × 4 k): widen to 16 bits, pmaddwd with ones gives two partial sums a column.
template <bool Signed>
void sum_columns(const uint8_t* panel, idx k_whole, int32_t* sums) {
  const __m128i ones = _mm_set1_epi16(1), zero = _mm_setzero_si128();
  __m128i partial[8];
  for (auto& x : partial) x = zero;
  for (idx k = 0; k < k_whole; k += kGroup, panel += kGroupBytes)
    for (int c = 0; c < 4; ++c) {
      const __m128i x = load16(panel + 16 * c);
      const __m128i low = Signed ? _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8) : _mm_unpacklo_epi8(x, zero);
      const __m128i high = Signed ? _mm_srai_epi16(_mm_unpackhi_epi8(x, x), 8) : _mm_unpackhi_epi8(x, zero);
      partial[2 * c] = _mm_add_epi32(partial[2 * c], _mm_madd_epi16(low, ones));
      partial[2 * c + 1] = _mm_add_epi32(partial[2 * c + 1], _mm_madd_epi16(high, ones));
    }
  for (idx j = 0; j < kPanel; ++j) {
    uint32_t two[4];
    memcpy(two, &partial[j / 2], 16);
    sums[j] = int32_t(two[j % 2 * 2] + two[j % 2 * 2 + 1]);
  }
}

// The same where the CPU has AVX2: bytes in pairs against ones, then 64 groups fit 16 bits (510 · 64 < 2¹⁵).
// Why: with the SSE2 form, summing took 60 % of packing a 64×64 matrix; with this, a tenth.
template <bool Signed>
__attribute__((target("avx2"))) void sum_columns_avx2(const uint8_t* panel, idx k_whole, int32_t* sums) {
  const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
  __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (idx k = 0; k < k_whole; k += 64 * kGroup) {
    __m256i part[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (idx q = k; q < min_of(k + 64 * kGroup, k_whole); q += kGroup, panel += kGroupBytes)
      for (int c = 0; c < 2; ++c) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * c));
        part[c] = _mm256_add_epi16(part[c], Signed ? _mm256_maddubs_epi16(bytes, x) : _mm256_maddubs_epi16(x, bytes));
      }
    for (int c = 0; c < 2; ++c) total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(part[c], words));
  }
  for (int c = 0; c < 2; ++c) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * c), total[c]);
}

#else

template <bool Signed>
void sum_columns_avx2(const uint8_t*, idx, int32_t*) {}

template <bool Signed>
void sum_columns(const uint8_t* panel, idx k_whole, int32_t* sums) {
  uint32_t sum[kPanel] = {};
  for (idx k = 0; k < k_whole; k += kGroup, panel += kGroupBytes)
    for (idx j = 0; j < kPanel; ++j)
      for (idx t = 0; t < kGroup; ++t) {
        const uint8_t byte = panel[j * kGroup + t];
        sum[j] += Signed ? uint32_t(int32_t(int8_t(byte))) : byte;
      }
  memcpy(sums, sum, sizeof sum);
}

#endif

}  // namespace

void pack_panels(const PlainWeights& w, idx k_step, Range panels, uint8_t* dst, int32_t* sums) {
  const idx k_whole = padded(w.k, k_step);
  static const bool avx2 = cpu_runs("x86_avx2");
  const auto sum = avx2 ? (w.is_signed ? sum_columns_avx2<true> : sum_columns_avx2<false>)
                        : (w.is_signed ? sum_columns<true> : sum_columns<false>);
  for (idx p = panels.begin; p < panels.end;) {
    const idx whole = w.col == 1 ? min_of(kSideBySide, min_of(panels.end, w.n / kPanel) - p) : 0;
    if (whole > 0) pack_adjacent(w, k_whole, p * kPanel, whole, dst + p * k_whole * kPanel);
    else pack_panel(w, k_whole, p * kPanel, dst + p * k_whole * kPanel);
    for (const idx end = p + max_of(whole, 1); p < end; ++p)
      if (sums) sum(dst + p * k_whole * kPanel, k_whole, sums + p * kPanel);
  }
}

bool are_narrow(const uint8_t* weights, idx count, bool is_signed) {
  constexpr idx kAtOnce = 4096;  // weights of all values are known for what they are after the first few
  const uint8_t shift = is_signed ? 64 : 0;
  for (idx from = 0; from < count; from += kAtOnce) {
    uint8_t wide = 0;
    for (idx i = from; i < min_of(from + kAtOnce, count); ++i) wide |= uint8_t(weights[i] + shift) > 128;
    if (wide) return false;
  }
  return true;
}

}  // namespace qk
