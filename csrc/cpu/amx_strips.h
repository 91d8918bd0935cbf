// The loops around the AMX pipeline (amx.h): strips of A and blocks of weights, for bytes and whatever else fills tiles.
//
// A strip of A, 32 × kc bytes, stays in L1 while the weights of a block stream past it from L2 with tileloaddt1, which
// leaves L1 to A; the block stays in L2 while strip after strip passes. Rows are split into strips of nearly the same
// height: a multiplication's time falls with its rows down to 8, never with K or N.
// Why blocks of few rows are not smaller, whose first is not fetched ahead: 49×4608×512 takes 121 µs with blocks of 128
// columns, 125 with 64, 132 with 32 (weights from L3); nor does it help there to leave A unfetched, or k undivided.
// Why not shrink K of the tile for a tail: no cycle is saved; A's tail is packed with zeros.
//
// K is counted in bytes. `Source` is where operands come from:
//   bool in_place()                                              may tiles be loaded straight from g.a?
//   void pack(idx i, idx rows, idx k0, idx k, uint8_t* to)       rows of A as [k/64][rows][64], zeros behind K
//   const uint8_t* weights(Range n)                              panel p of these columns at + p · g.w_panel
//   Coming ahead(Range n)                                        what weights(n) will read
#pragma once
#include "amx_drains.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kFewRows = 256;         // so few that weights come from L3 nearly as fast as they are multiplied
constexpr idx kKeptBytes = 16 << 20;  // of packed A

struct Blocks {
  idx mc, nc, kc;
  bool keep;  // packed A, for the next block of weights
};

inline Blocks blocks(const Gemm& g) {
  const idx k = padded(g.k, kTileK), strip = g.l1_bytes * 2 / 3 / (2 * kTileRows) / kTileK * kTileK;
  idx nc = g.l2_bytes * 5 / 8 / k / kPair * kPair;
  if (nc < g.n && g.m <= kFewRows) nc = nc / 2 / kPair * kPair;  // room for the next block, on its way from L3
  nc = max_of(nc, 2 * kPair);
  const idx mc = max_of(kKeptBytes / k / (2 * kTileRows), 1) * 2 * kTileRows;
  return {mc, nc, min_of(k, max_of(strip, kTileK)), nc < g.n};
}

struct Scratch {  // how a thread's scratch is divided
  idx a, terms, sums, total;
};

inline Scratch divide(const Gemm& g) {
  constexpr idx kRows = 2 * kTileRows;
  const Blocks b = blocks(g);
  const idx k = padded(g.k, kTileK), tiles = b.kc < k ? ceil_div(min_of(b.nc, padded(g.n, kPair)), kPair) : 1;
  Scratch s;
  s.a = 0;
  s.terms = b.keep ? min_of(b.mc, padded(g.m, kRows)) * k : kRows * b.kc;
  s.sums = s.terms + 2 * 2 * kRows * 4;
  s.total = s.sums + (tiles + 1) * kSumsSize * 4;
  return s;
}

struct Coming {
  const uint8_t* data;
  idx bytes;
};

// Rows of bytes, any strides. Row by row, as A lies: prefetchers follow that, and stores may jump.
inline void pack_bytes(const Gemm& g, idx i, idx rows, idx k0, idx k, uint8_t* dst) {
  const idx whole = g.a_col == 1 ? k / kTileK : 0, steps = ceil_div(k, kTileK);
  for (idx r = 0; r < rows; ++r) {
    const uint8_t* src = g.a + (i + r) * g.a_row + k0 * g.a_col;
    uint8_t* to = dst + r * kTileK;
    for (idx s = 0; s < whole; ++s, to += rows * kTileK) memcpy(to, src + s * kTileK, kTileK);
    for (idx s = whole; s < steps; ++s, to += rows * kTileK) {
      const idx have = min_of(kTileK, k - s * kTileK);
      if (g.a_col == 1) {
        _mm512_storeu_si512(to, _mm512_maskz_loadu_epi8((uint64_t(1) << have) - 1, src + s * kTileK));
        continue;
      }
      for (idx t = 0; t < have; ++t) to[t] = src[(s * kTileK + t) * g.a_col];
      memset(to + have, 0, size_t(kTileK - have));
    }
  }
}

template <bool ASigned, bool WSigned, class Drain, class Source>
class Strips {
 public:
  static void block(const Gemm& g, Range m, Range n, const Source& source, void* scratch) {
    const Scratch s = divide(g);
    uint8_t* const base = static_cast<uint8_t*>(scratch);
    Strips work(g, source, base + s.a, reinterpret_cast<uint32_t*>(base + s.terms),
                reinterpret_cast<int32_t*>(base + s.sums) + kPanel);
    const idx mc = work.b_.mc;
    for (idx m0 = m.begin; m0 < m.end; m0 += mc) work.rows({m0, min_of(m0 + mc, m.end)}, n);
    work.pipe_.flush();
    _tile_release();
  }

 private:
  static constexpr idx kRows = 2 * kTileRows;

  Strips(const Gemm& g, const Source& source, uint8_t* packed, uint32_t* terms, int32_t* sums)
      : g_(g),
        source_(source),
        b_(blocks(g)),
        k_(padded(g.k, kTileK)),
        packed_(packed),
        terms_(terms),
        sums_(sums),
        drain_(g),
        pipe_(drain_) {}

  // Rows m, strip after strip past a block of weights, block after block.
  void rows(Range m, Range n) {
    const idx strip = ceil_div(m.end - m.begin, ceil_div(m.end - m.begin, kRows));
    const bool few =
        m.end - m.begin <= 2 * kRows;  // a copy for later is not read often enough: 49×4608×512 120 → 106 µs
    const bool direct = (!b_.keep || few) && source_.in_place();
    for (idx n0 = n.begin; n0 < n.end; n0 += b_.nc) {
      const Range block = {n0, min_of(n0 + b_.nc, n.end)}, next = {block.end, min_of(block.end + b_.nc, n.end)};
      const idx tiles = ceil_div(block.end - block.begin, kPair);
      w_ = source_.weights(block);
      const Coming coming = source_.ahead(next);
      ahead_w_.over(coming.data, coming.bytes, ceil_div(m.end - m.begin, strip) * tiles * (k_ / kTileK));
      for (idx i = m.begin; i < m.end; i += strip) {
        const idx count = min_of(strip, m.end - i);
        flip_ = !flip_;
        if (g_.a_zero || g_.w_zero) row_terms<ASigned>(g_, i, count, terms(), terms() + kRows);
        for (idx k0 = 0; k0 < g_.k; k0 += b_.kc) {
          const idx k = min_of(b_.kc, g_.k - k0);
          uint8_t* const panel = b_.keep ? packed_ + (i - m.begin) * k_ + k0 * count : packed_;
          if (direct) {
            run(i, count, k0, k, g_.a + i * g_.a_row + k0, kTileK, g_.a_row, block);
            continue;
          }
          if (n0 == n.begin) source_.pack(i, count, k0, k, panel);
          else ahead_a_.over(panel + count * padded(k, kTileK), count * b_.kc, tiles * ceil_div(k, kTileK));
          run(i, count, k0, k, panel, count * kTileK, kTileK, block);
        }
      }
    }
  }

  uint32_t* terms() const {
    return terms_ + (flip_ ? 2 * kRows : 0);
  }  // of two strips: the one before is being drained

  // A panel of A, `rows` from i and k from k0, past a block of weights.
  void run(idx i, idx rows, idx k0, idx k, const uint8_t* a, idx a_step, idx a_stride, Range block) {
    const bool last = k0 + k >= g_.k;
    int32_t* tile = sums_;
    for (idx j = block.begin; j < block.end; j += kPair) {
      int32_t* const next = b_.kc < k_ ? tile + kSumsSize : tile;
      TileJob& t = pipe_.job();
      t.i = i, t.j = j, t.cols = min_of(kPair, block.end - j);
      t.begins = j == block.begin, t.ends = j + kPair >= block.end;
      t.zero = terms(), t.sum = terms() + kRows, t.next = next;
      pipe_.ahead = ahead_a_.left > 0 ? &ahead_a_ : &ahead_w_;
      // A last panel alone is multiplied twice, side by side: another shape of tiles would empty the pipeline.
      const bool two = block.end - block.begin > kPanel;
      pipe_.shape(rows, two ? 2 : 1);
      pipe_.multiply(a, a_step, a_stride, w_ + j / kPanel * g_.w_panel + k0 * kPanel, t.cols > kPanel ? g_.w_panel : 0,
                     ceil_div(k, kTileK), tile, k0 > 0, last);
      tile = next;
    }
  }

  const Gemm& g_;
  const Source& source_;
  const Blocks b_;
  const idx k_;
  uint8_t* const packed_;
  uint32_t* const terms_;
  int32_t* const sums_;
  const uint8_t* w_ = nullptr;
  bool flip_ = false;
  Drain drain_;
  AmxPipe<ASigned, WSigned, Drain> pipe_;
  Ahead ahead_a_, ahead_w_;
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
