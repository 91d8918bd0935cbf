// What becomes of the sums of an AMX tile (amx.h says when): int32 as they are, real numbers, codes.
//
// A tile's columns are two vectors, and what belongs to columns stays in registers that multiplication does not use;
// so a row costs its loads, a dozen operations and its stores, and hides under the next tile's multiplications.
// 4-byte results leave one aligned line at a time, whatever out's alignment: a line that two tiles share is held back
// from the first and completed by the second. Stores across lines cost 30 % at 512³.
// Where k is one step, tiles and drains take their times one after the other (9 and 13 of 22 µs at 1×1 64@56). Neither a
// drain one tile later, whose sums have left the store buffer, nor its rows between the multiplications makes them overlap.
// Why not rows of four tiles (or two) at once, in pieces of 512 (256) bytes: sums then need two buffers of 18 (10) KiB,
// and those and A do not fit L1. 512³ 79 to 89 µs → 87 to 93 (86 to 92), 1024³ 531 to 560 → 670 to 694 (564 to 601),
// 128×768×768 36.6 → 43.6 (39), and where the output is in L3, 256×512×3072, 338 → 342: pieces are not what costs there.
// Why not fetch the next tile's lines of out for writing, one or three tiles ahead, into L1 or L2: 512³ 90 → 82 to 87,
// but 1024³ 575 → 560 to 625, 2048³ 5.9 → 6.2 ms, 128×4096×4096 1.66 → 1.75.
// Why a missing float bias is −0.0, which is added: x + −0.0 is x for every x, and the loop needs no branch.
#pragma once
#include "amx.h"
#include "finish.h"

namespace qk {
namespace QK_ISA {
namespace {

struct TileJob {
  idx i, j, cols;
  bool begins, ends;  // the run of tiles side by side
  const uint32_t *zero, *sum;
  int32_t* next;  // the sums of the tile to the right: what is held back goes before them
};

QK_INLINE inline idx line_offset(const int32_t* to) { return idx(reinterpret_cast<uintptr_t>(to) / 4 % kPanel); }

QK_INLINE inline void copy_line(int32_t* to, const int32_t* from) { memcpy(to, from, kPanel * 4); }

// A row of a tile whose 4-byte results lie where the sums were.
inline void put_lines(const TileJob& t, int32_t* to, const int32_t* from) {
  const idx off = line_offset(to), end = off + t.cols;
  for (idx e = 0; e < end; e += kPanel) {
    uint32_t mask = e == 0 && t.begins ? 0xFFFFu << off : 0xFFFFu;
    if (end - e < kPanel) {
      if (!t.ends) return;
      mask &= (1u << (end - e)) - 1;
    }
    _mm512_mask_storeu_epi32(to - off + e, __mmask16(mask), _mm512_loadu_si512(from - off + e));
  }
}

inline void subtract_terms(const Gemm& g, const TileJob& t, int32_t* sums, idx r, idx end) {
  for (; r < end; ++r) add_terms(g, sums + r * kSumsRow, t.j, t.cols, t.zero[r], t.sum[r]);
}

// Rows r … end whose 4-byte results lie where the sums were, to `to`.
inline void put_rows(const TileJob& t, int32_t* sums, idx r, idx end, int32_t* to, idx to_row, bool add) {
  int32_t* from = sums + r * kSumsRow;
  for (to += r * to_row; r < end; ++r, from += kSumsRow, to += to_row) {
    if (add) add_row(to, from, t.cols);
    else put_lines(t, to, from);
    if (!t.ends) copy_line(t.next + r * kSumsRow - kPanel, from + kPanel);
  }
}

struct ToOut {
  using Job = TileJob;
  const Gemm& g;
  const bool plain;

  explicit ToOut(const Gemm& gemm) : g(gemm), plain(!g.a_zero && !g.w_zero && !g.add) {}

  bool quick(const Job&) const { return plain; }

  // Up to three lines of a row: what was held back of the tile before and this tile's columns, less what is held back.
  struct Cursor {
    int32_t *from, *to;
    idx out_row, back;
    uint64_t columns, before;  // masks: of this tile's columns; all ones where the tile before has left something

    QK_INLINE void row() {
      const idx off = line_offset(to);
      const uint64_t lanes = columns << off | (before & ((1u << off) - 1));
      int32_t* const line = to - off;
      const int32_t* const sums = from - off;
      _mm512_mask_storeu_epi32(line, __mmask16(lanes), _mm512_loadu_si512(sums));
      _mm512_mask_storeu_epi32(line + kPanel, __mmask16(lanes >> kPanel), _mm512_loadu_si512(sums + kPanel));
      if (back == 0)
        _mm512_mask_storeu_epi32(line + kPair, __mmask16(lanes >> kPair), _mm512_loadu_si512(sums + kPair));
      else copy_line(from + back, from + kPanel);
      from += kSumsRow, to += out_row;
    }
    QK_INLINE void rows(idx n) {
      for (; n > 0; --n) row();
    }
  };

  Cursor cursor(const Job& t, int32_t* sums) const {
    return {sums,
            g.out + t.i * g.out_row + t.j,
            g.out_row,
            t.ends ? 0 : t.next - kPanel - sums,
            (uint64_t(1) << t.cols) - 1,
            t.begins ? 0 : ~uint64_t(0)};
  }

  void rows(const Job& t, int32_t* sums, idx r, idx end) const {
    subtract_terms(g, t, sums, r, end);
    put_rows(t, sums, r, end, g.out + t.i * g.out_row + t.j, g.out_row, g.add);
  }
};

// Sums: s32, or with Real float32 that are weighed already.
template <bool Real = false>
struct ToReal {
  using Job = TileJob;
  const Gemm& g;
  const Epilogue& e;
  const bool plain;

  explicit ToReal(const Gemm& gemm)
      : g(gemm),
        e(*g.epilogue),
        plain(!g.a_zero && !g.w_zero && !e.bias_row && e.residual_type == Residual::none && e.curve == Curve::none) {}

  static bool takes(const Epilogue& e) { return e.type == Written::f32; }
  bool quick(const Job& t) const { return plain && t.cols == kPair; }

  // Made in registers and shifted to whole lines there: a load across lines just stored would wait for them.
  struct Cursor {
    int32_t *from, *to;
    idx out_row, back;
    bool begins, ends;
    const float* a_scale;
    idx a_step;
    __m512i bias0, bias1;
    __m512 w0, w1, real0, real1, low, high;

    QK_INLINE __m512i made(__m512i sums, __m512i bias, __m512 c, __m512 real) const {
      __m512 y = Real ? _mm512_castsi512_ps(sums) : _mm512_cvtepi32_ps(_mm512_add_epi32(sums, bias));
      y = _mm512_mul_ps(y, c);
      y = _mm512_add_ps(y, real);
      return _mm512_castps_si512(_mm512_min_ps(high, _mm512_max_ps(low, y)));
    }

    QK_INLINE void row() {
      const __m512 a = _mm512_set1_ps(*a_scale);
      a_scale += a_step;
      const __m512i y0 = made(_mm512_loadu_si512(from), bias0, _mm512_mul_ps(a, w0), real0);
      const __m512i y1 = made(_mm512_loadu_si512(from + kPanel), bias1, _mm512_mul_ps(a, w1), real1);
      const __m512i before = _mm512_loadu_si512(from - kPanel);
      const idx off = line_offset(to);
      const __m512i lanes = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(int(kPanel - off)));
      int32_t* const line = to - off;
      _mm512_mask_storeu_epi32(line, __mmask16(begins ? 0xFFFFu << off : 0xFFFFu),
                               _mm512_permutex2var_epi32(before, lanes, y0));
      _mm512_storeu_si512(line + kPanel, _mm512_permutex2var_epi32(y0, lanes, y1));
      if (ends)
        _mm512_mask_storeu_epi32(line + 2 * kPanel, __mmask16((1u << off) - 1),
                                 _mm512_permutex2var_epi32(y1, lanes, y1));
      else _mm512_storeu_si512(from + back, y1);
      from += kSumsRow, to += out_row;
    }
    QK_INLINE void rows(idx n) {
      for (; n > 0; --n) row();
    }
  };

  Cursor cursor(const Job& t, int32_t* sums) const {
    using L = Lanes;
    const L::F none = L::splat(-0.0f);
    const L::I zero = L::splat(0);
    const idx j = t.j;
    return {sums,
            static_cast<int32_t*>(e.out) + t.i * e.out_row + j,
            e.out_row,
            t.next - kPanel - sums,
            t.begins,
            t.ends,
            e.a_scale + t.i * e.a_scale_step,
            e.a_scale_step,
            e.bias ? L::load(e.bias + j) : zero,
            e.bias ? L::load(e.bias + j + kPanel) : zero,
            Real ? L::splat(1.0f) : L::load(e.w_scale + j),
            Real ? L::splat(1.0f) : L::load(e.w_scale + j + kPanel),
            e.float_bias ? L::load(e.float_bias + j) : none,
            e.float_bias ? L::load(e.float_bias + j + kPanel) : none,
            L::splat(e.clamps ? e.clamp_low : -__builtin_inff()),
            L::splat(e.clamps ? e.clamp_high : __builtin_inff())};
  }

  void rows(const Job& t, int32_t* sums, idx r, idx end) const {
    subtract_terms(g, t, sums, r, end);
    real_in_place(e, sums + r * kSumsRow, kSumsRow, t.i + r, end - r, t.j, t.cols);
    put_rows(t, sums, r, end, static_cast<int32_t*>(e.out) + t.i * e.out_row + t.j, e.out_row, false);
  }
};

// Codes of one byte, half to even, quickly; whatever else an epilogue may ask for by finish.h.
template <class T>
struct ToCodes {
  using Job = TileJob;
  const Gemm& g;
  const Epilogue& e;
  const bool plain, small;

  explicit ToCodes(const Gemm& gemm)
      : g(gemm),
        e(*g.epilogue),
        plain(e.type == (T(-1) < T(0) ? Written::s8 : Written::u8) && e.rounding == kHalfEven && !g.a_zero &&
              !g.w_zero && !e.bias_row && !e.m_row && e.residual_type == Residual::none),
        small(plain && all_small(e.m, g.n)) {}

  bool quick(const Job&) const { return plain; }

  // Does every product of a sum fit into int32? By their bits, so that it is one pass of a vector.
  static bool all_small(const float* m, idx n) {
    uint32_t most = 0;
    for (idx j = 0; j < n; ++j) {
      uint32_t bits;
      memcpy(&bits, m + j, sizeof bits);
      bits &= 0x7FFFFFFF;
      most = bits > most ? bits : most;
    }
    return most <= 0x3F000000;  // 0.5
  }

  // Two rows of two vectors at a time: packed together they saturate at once, and their zero point is one addition; 27
  // operations where a vector at a time takes 36. What the conversion cannot hold becomes the least integer, so that
  // only the upper clamp is needed before it; and none is where it holds everything (`Small`), so that one of bytes
  // does: 24. Where k is one step there is nothing to hide under: 1×1 64-256@56 95 → @@ µs.
  struct Cursor {
    const int32_t* from;
    T* to;
    idx out_row;
    __m512i bias0, bias1, zero, low, order;
    __m512 m0, m1, high;  // Small: bytes
    __mmask32 columns;
    bool small;

    template <bool Small>
    QK_INLINE __m512i made(const int32_t* sums, __m512i bias, __m512 m) const {
      const __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(sums), bias)), m);
      return _mm512_cvtps_epi32(Small ? t : _mm512_min_ps(high, t));
    }
    template <bool Small>
    QK_INLINE __m512i both(const int32_t* sums) const {
      return _mm512_adds_epi16(_mm512_packs_epi32(made<Small>(sums, bias0, m0), made<Small>(sums + kPanel, bias1, m1)),
                               zero);
    }
    template <bool Small>
    QK_INLINE __m512i codes(__m512i x, __m512i y) const {
      constexpr bool kSigned = T(-1) < T(0);
      __m512i bytes =
          kSigned ? _mm512_max_epi8(_mm512_packs_epi16(x, y), low) : _mm512_max_epu8(_mm512_packus_epi16(x, y), low);
      if (Small)
        bytes = kSigned ? _mm512_min_epi8(bytes, _mm512_castps_si512(high))
                        : _mm512_min_epu8(bytes, _mm512_castps_si512(high));
      return _mm512_permutexvar_epi32(order, bytes);
    }

    QK_INLINE void row() {
      const __m512i x = small ? both<true>(from) : both<false>(from);
      _mm256_mask_storeu_epi8(to, columns, _mm512_castsi512_si256(small ? codes<true>(x, x) : codes<false>(x, x)));
      from += kSumsRow, to += out_row;
    }
    template <bool Small>
    QK_INLINE __m512i two_rows() const {
      return codes<Small>(both<Small>(from), both<Small>(from + kSumsRow));
    }
    QK_INLINE void pair() {
      const __m512i x = small ? two_rows<true>() : two_rows<false>();
      _mm256_mask_storeu_epi8(to, columns, _mm512_castsi512_si256(x));
      _mm256_mask_storeu_epi8(to + out_row, columns, _mm512_extracti64x4_epi64(x, 1));
      from += 2 * kSumsRow, to += 2 * out_row;
    }
    QK_INLINE void rows(idx n) {
      for (; n > 1; n -= 2) pair();
      if (n > 0) row();
    }
  };

  Cursor cursor(const Job& t, int32_t* sums) const {
    using L = Lanes;
    const L::I none = L::splat(0);
    const idx j = t.j, n0 = min_of(t.cols, kPanel), n1 = t.cols - n0;
    return {sums,
            out_row<T>(e, t.i, j),
            e.out_row,
            e.bias ? L::some(e.bias + j, n0) : none,
            e.bias ? L::some(e.bias + j + kPanel, n1) : none,
            L::splat16(e.zero),
            _mm512_set1_epi8(char(e.low)),
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
            L::some(e.m + j, n0),
            L::some(e.m + j + kPanel, n1),
            small ? _mm512_castsi512_ps(_mm512_set1_epi8(char(e.high))) : L::splat(float(e.high - e.zero)),
            __mmask32((uint64_t(1) << t.cols) - 1),
            small};
  }

  void rows(const Job& t, int32_t* sums, idx r, idx end) const {
    subtract_terms(g, t, sums, r, end);
    finish_rows(e, sums + r * kSumsRow, kSumsRow, t.i + r, end - r, t.j, t.cols);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
