// Products of few k steps: sums are soon whole, and writing them is most of the work.
//
//   t4 │ A, 16 rows, a k step: t0 t1 t2 t3 │ t6 t7 weights, panel after panel; t0 … t3 leave while the next four begin
//
// Sums go from the tiles straight into out: no buffer, no jobs. A is read in place, whatever its alignment, and a last
// strip of rows begins so early that it is whole. 64³: 0.55 → 0.23 µs; 3136×64×64 27 → 17.
// NumPy's arrays begin 16 bytes off the line, and then each row of a tile is a store across lines. So the *weights* are
// turned instead, once a call: panels begin at the columns at which out's lines do, and the ends of a row, a part of a
// line at either side, share one panel and leave through a buffer. 3136×64×64 38 → 17.6 µs, 1000×128×128 25.5 → 13.4
// (without turning 22, 21.9). Why not through a buffer, in rows of whole lines: 20.6 and 21; 1000×64×256 55 against 24.
// Why not for a longer k: with four panels from L2 for each tile of A, 512³ takes 94 µs where the pipeline takes 89.
#pragma once
#include "amx_strips.h"

namespace qk {
namespace QK_ISA {
namespace {

template <bool ASigned, bool WSigned>
class Thin {
 public:
  static bool takes(const Gemm& g) {
    const bool plain = !g.a_zero && !g.w_zero && !g.epilogue && !g.add;
    const idx k = padded(g.k, kTileK);
    return plain && (k <= kMostK || (g.n <= kFewColumns && k <= kMostKOfFew)) && k * g.n <= g.l2_bytes / 8;
  }

  // For g or a part of it.
  static idx scratch_bytes(const Gemm& g) {
    return max_of(bytes(min_of(g.k, kMostK), g.n, g), bytes(min_of(g.k, kMostKOfFew), min_of(g.n, kFewColumns), g));
  }

  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    Thin work(g, m, n, static_cast<uint8_t*>(scratch));
    if (work.off_ > 0) work.turn_weights();
    configure(work.rows_, work.rows_, kTileK);
    for (idx i = m.begin; i < m.end; i += kTileRows) work.strip(min_of(i, m.end - work.rows_));
    work.multiply({}, nullptr, nullptr);
    _tile_release();
  }

 private:
  static constexpr idx kAtOnce = 4;  // tiles of sums
  static constexpr idx kTile = kTileRows * kPanel;

  static idx bytes(idx k, idx n, const Gemm& g) {
    k = padded(k, kTileK);
    return 2 * kTile * 4 + kTileRows * k + min_of(k * padded(n, kPanel), g.l2_bytes / 8) + 2 * k * kPanel;
  }
  static constexpr idx kMostK = 256, kFewColumns = 64, kMostKOfFew = 768;

  struct Sums {                         // of up to four tiles
    idx tiles = 0, whole = 0, end = 0;  // whole ones, then ends of rows; the number of the first
    int32_t* to = nullptr;              // where the whole ones belong
    int32_t* row = nullptr;             // the line in which the first row begins
  };

  Thin(const Gemm& g, Range m, Range n, uint8_t* scratch)
      : g_(g),
        rows_(min_of(m.end - m.begin, kTileRows)),
        steps_(ceil_div(g.k, kTileK)),
        in_place_(g.a_col == 1 && g.k % kTileK == 0 && g.a_row % 2048 != 0),
        out_(g.out + n.begin),
        w_(g.w + n.begin / kPanel * g.w_panel),
        w_panel_(g.w_panel),
        ends_(reinterpret_cast<int32_t*>(scratch)),
        packed_(scratch + 2 * kTile * 4),
        turned_(packed_ + kTileRows * steps_ * kTileK) {
    const idx columns = n.end - n.begin, panels = ceil_div(columns, kPanel);
    const bool pays = (m.end - m.begin) * (panels - 2) > steps_ * kPanel * panels;
    off_ = pays && g.out_row % kPanel == 0 ? line_offset(out_) : 0;
    lines_ = ceil_div(columns + off_, kPanel);
    const idx tail = (columns + off_) % kPanel;
    shared_ = off_ > 0 && tail > 0 && tail <= off_;
    whole_ = (columns + off_) / kPanel - (off_ > 0);
    tiles_ = whole_ + (tail > 0) + (off_ > 0) - shared_;
    tails_[0] = Lanes::first(tail);
    if (off_ > 0) heads_[tiles_ - whole_ - 1] = __mmask16(0xFFFFu << off_);
    at_once_ = ceil_div(tiles_, ceil_div(tiles_, kAtOnce));
  }

  // A panel whose first off_ columns are the last of `left`, and the others the first of `right`.
  void turn_panel(idx tile, const uint8_t* left, const uint8_t* right) const {
    const __m512i lanes = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(int(kPanel - off_)));
    const idx bytes = steps_ * kTileK * kPanel;
    uint8_t* const to = turned_ + tile * bytes;
    for (idx at = 0; at < bytes; at += 64)
      _mm512_storeu_si512(
          to + at, _mm512_permutex2var_epi32(_mm512_loadu_si512(left + at), lanes, _mm512_loadu_si512(right + at)));
  }

  // Whole lines, the tail of the row, its head: tiles_ panels.
  void turn_weights() {
    const auto panel = [this](idx p) { return w_ + p * w_panel_; };
    for (idx t = 0; t < whole_; ++t) turn_panel(t, panel(t), panel(t + 1));
    if (tails_[0]) turn_panel(whole_, panel(whole_), shared_ ? panel(0) : panel(whole_ + 1));
    if (!shared_) turn_panel(tiles_ - 1, panel(0), panel(0));
    w_ = turned_, w_panel_ = steps_ * kTileK * kPanel;
  }

  void strip(idx i) {
    const uint8_t* a = g_.a + i * g_.a_row;
    if (!in_place_) pack_bytes(g_, i, rows_, 0, g_.k, packed_), a = packed_;
    int32_t* const row = out_ + i * g_.out_row - off_;
    int32_t* const to = row + (off_ > 0 ? kPanel : 0);
    for (idx t = 0; t < tiles_; t += at_once_) {
      const idx tiles = min_of(tiles_ - t, at_once_);
      multiply({tiles, min_of(tiles, max_of(whole_ - t, 0)), max_of(t - whole_, 0), to + t * kPanel, row}, a,
               w_ + t * w_panel_);
    }
  }

#define QK_FIRST(c, t)                                                                        \
  do {                                                                                        \
    if (c < next.tiles) _tile_loadd(t, w + c * w_panel_, 64);                                 \
    if (c < held_.whole) _tile_stored(c, held_.to + c * kPanel, g_.out_row * 4);              \
    else if (c < held_.tiles) _tile_stored(c, ends_ + (c - held_.whole) * kTile, kPanel * 4); \
    if (c < next.tiles) {                                                                     \
      _tile_zero(c);                                                                          \
      QK_TDP(c, 4, t);                                                                        \
    }                                                                                         \
  } while (0)
#define QK_NEXT(c, t)                       \
  do {                                      \
    if (c < next.tiles) {                   \
      _tile_loadd(t, w + c * w_panel_, 64); \
      QK_TDP(c, 4, t);                      \
    }                                       \
  } while (0)

  // The tiles before leave while these begin; none: the last leave.
  void multiply(const Sums& next, const uint8_t* a, const uint8_t* w) {
    const idx a_stride = in_place_ ? g_.a_row : kTileK, a_step = in_place_ ? kTileK : rows_ * kTileK;
    QK_MEMORY_BARRIER();
    if (next.tiles > 0) _tile_loadd(4, a, a_stride);
    QK_FIRST(0, 6);
    QK_FIRST(1, 7);
    QK_FIRST(2, 6);
    QK_FIRST(3, 7);
    for (idx s = 1; s < steps_ && next.tiles > 0; ++s) {
      a += a_step, w += kTileK * kPanel;
      _tile_loadd(4, a, a_stride);
      QK_NEXT(0, 6);
      QK_NEXT(1, 7);
      QK_NEXT(2, 6);
      QK_NEXT(3, 7);
    }
    QK_MEMORY_BARRIER();
    if (held_.tiles > held_.whole) put_ends();
    held_ = next;
  }

#undef QK_FIRST
#undef QK_NEXT

  void put_ends() const {
    const int32_t* sums = ends_;
    for (idx e = held_.end; e < held_.end + held_.tiles - held_.whole; ++e, sums += kTile)
      for (idx r = 0; r < rows_; ++r) {
        int32_t* const line = held_.row + r * g_.out_row;
        const __m512i x = _mm512_loadu_si512(sums + r * kPanel);
        if (heads_[e]) _mm512_mask_storeu_epi32(line, heads_[e], x);
        if (tails_[e]) _mm512_mask_storeu_epi32(line + (lines_ - 1) * kPanel, tails_[e], x);
      }
  }

  const Gemm& g_;
  const idx rows_, steps_;
  const bool in_place_;
  int32_t* const out_;  // its first column here
  const uint8_t* w_;
  idx w_panel_;
  int32_t* const ends_;  // two tiles
  uint8_t* const packed_;
  uint8_t* const turned_;
  idx off_, lines_, whole_, tiles_, at_once_;
  bool shared_;                              // one panel has room for both ends of a row
  __mmask16 heads_[2] = {}, tails_[2] = {};  // of the tiles of ends: lanes of a row's first line, of its last
  Sums held_;
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
