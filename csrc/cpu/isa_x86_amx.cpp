// gemm x86_amx: the AMX pipeline (amx.h) over strips of A and blocks of weights.
//
// A strip of A, 32 × kc bytes, stays in L1 while the weights of a block stream past it from L2 with tileloaddt1, which
// leaves L1 to A; the block stays in L2 while strip after strip passes. The four sign pairs have an instruction each, so
// nothing is flipped. Rows are split into strips of nearly the same height: a multiplication's time falls with its rows
// down to 8, never with K or N.
// A is read in place only where every tile row is one cache line and the rows do not share sets of L1. NumPy's arrays
// begin at 16 bytes off the line as a rule, and then each row of a tile costs two lines: 3.4 against 2.6 TOPS.
// Why not shrink K of the tile for a tail: no cycle is saved; A's tail is packed with zeros.
#define QK_ISA x86_amx
#define QK_TILE "32x32"
#define QK_DRIVER(as, ws) AmxDriver<as, ws>
#include "lanes_avx512.h"
#include "amx_drains.h"
#include "isa_rows.h"
#include "x86.h"

namespace qk {
namespace x86_amx {
namespace {

constexpr idx kMinM = 4;  // 2 and 3 rows: half of VNNI's time where weights come from L2, 8 % more from L3
constexpr double kGops = 3000, kCallUs = 0.2;
constexpr idx kLeastColumns = 256;
constexpr idx kFewRows = 256;         // so few that weights come from L3 nearly as fast as they are multiplied
constexpr idx kKeptBytes = 16 << 20;  // of packed A

template <bool ASigned, bool WSigned>
struct AmxDriver {
  static constexpr idx kMr = 2 * kTileRows, kNr = kPair, kKStep = kTileK;
  static constexpr bool kNeedsSums = false;

  struct Blocks {
    idx mc, nc, kc;
    bool keep;  // packed A, for the next block of weights
  };

  static Blocks blocks(const Gemm& g) {
    const idx k = padded(g.k, kTileK), strip = g.l1_bytes * 2 / 3 / kMr / kTileK * kTileK;
    idx nc = g.l2_bytes * 5 / 8 / k / kPair * kPair;
    if (nc < g.n && g.m <= kFewRows) nc = nc / 2 / kPair * kPair;  // room for the next block, on its way from L3
    nc = max_of(nc, 2 * kPair);
    const idx mc = max_of(kKeptBytes / k / kMr, 1) * kMr;
    return {mc, nc, min_of(k, max_of(strip, kTileK)), nc < g.n};
  }

  struct Scratch {  // how a thread's scratch is divided
    idx a, terms, sums, total;
  };

  static Scratch divide(const Gemm& g, const Blocks& b) {
    const idx k = padded(g.k, kTileK), tiles = b.kc < k ? ceil_div(min_of(b.nc, padded(g.n, kPair)), kPair) : 1;
    Scratch s;
    s.a = 0;
    s.terms = b.keep ? min_of(b.mc, padded(g.m, kMr)) * k : kMr * b.kc;
    s.sums = s.terms + 2 * 2 * kMr * 4;
    s.total = s.sums + (tiles + 1) * kSumsSize * 4;
    return s;
  }

  static size_t scratch_bytes(const Gemm& g) {
    const Gemm part = part_of(g, 0, k_part(g));
    return size_t(max_of(divide(g, blocks(g)).total, divide(part, blocks(part)).total));
  }

  // How much of a long k is multiplied before the next part is added to out: so much that kLeastColumns columns of it
  // stay in L2, and a panel of A is worth its way from L3. 384×11008×4096: 17.5 → 15.2 ms.
  // Why not twice as many columns, in shorter parts of k: adding to out costs more than it saves, 19.6 ms, and 72 ms
  // against 57 at 4096³. Why A is fetched ahead: without, 19.5 ms there, 64 at 4096³.
  static idx k_part(const Gemm& g) {
    const bool plain = !g.a_zero && !g.w_zero && !g.epilogue;
    const idx columns = blocks(g).nc;
    if (!plain || g.m <= kFewRows || columns >= min_of(g.n, kLeastColumns)) return g.k;
    return padded(ceil_div(g.k, ceil_div(kLeastColumns, columns)), kTileK);
  }

  static Gemm part_of(const Gemm& g, idx k0, idx k) {
    Gemm part = g;
    part.k = min_of(k, g.k - k0), part.a += k0 * g.a_col, part.w += k0 * kPanel, part.add = g.add || k0 > 0;
    return part;
  }

  static bool in_place(const Gemm& g) {
    return g.a_col == 1 && g.k % kTileK == 0 && (reinterpret_cast<uintptr_t>(g.a) | uintptr_t(g.a_row)) % 64 == 0 &&
           g.a_row % 2048 != 0;
  }

  // [k/64][rows][64], zeros behind K. Row by row, as A lies: prefetchers follow that, and stores may jump.
  static void pack(const Gemm& g, idx i, idx rows, idx k0, idx k, uint8_t* dst) {
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

  template <class Drain>
  struct Work;

  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    if (!g.epilogue)
      for (idx k0 = 0, k = k_part(g); k0 < g.k; k0 += k) Work<ToOut>::block(part_of(g, k0, k), m, n, scratch);
    else if (ToReal::takes(*g.epilogue)) Work<ToReal>::block(g, m, n, scratch);
    else if (g.epilogue->type == Written::u8) Work<ToCodes<uint8_t>>::block(g, m, n, scratch);
    else Work<ToCodes<int8_t>>::block(g, m, n, scratch);
  }
};

template <bool ASigned, bool WSigned>
template <class Drain>
struct AmxDriver<ASigned, WSigned>::Work {
  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    const Blocks b = blocks(g);
    const Scratch s = divide(g, b);
    uint8_t* const base = static_cast<uint8_t*>(scratch);
    Work work(g, b, base + s.a, reinterpret_cast<uint32_t*>(base + s.terms),
              reinterpret_cast<int32_t*>(base + s.sums) + kPanel);
    for (idx m0 = m.begin; m0 < m.end; m0 += b.mc) work.rows({m0, min_of(m0 + b.mc, m.end)}, n);
    work.pipe_.flush();
    _tile_release();
  }

 private:
  Work(const Gemm& g, const Blocks& b, uint8_t* packed, uint32_t* terms, int32_t* sums)
      : g_(g), b_(b), k_(padded(g.k, kTileK)), packed_(packed), terms_(terms), sums_(sums), drain_(g), pipe_(drain_) {}

  // Rows m, strip after strip past a block of weights, block after block.
  void rows(Range m, Range n) {
    const idx strip = ceil_div(m.end - m.begin, ceil_div(m.end - m.begin, kMr));
    const bool direct = !b_.keep && in_place(g_);
    for (idx n0 = n.begin; n0 < n.end; n0 += b_.nc) {
      const Range block = {n0, min_of(n0 + b_.nc, n.end)}, next = {block.end, min_of(block.end + b_.nc, n.end)};
      const idx tiles = ceil_div(block.end - block.begin, kPair);
      ahead_w_.over(g_.w + next.begin / kPanel * g_.w_panel, ceil_div(next.end - next.begin, kPanel) * g_.w_panel,
                    ceil_div(m.end - m.begin, strip) * tiles * (k_ / kTileK));
      for (idx i = m.begin; i < m.end; i += strip) {
        const idx count = min_of(strip, m.end - i);
        flip_ = !flip_;
        if (g_.a_zero || g_.w_zero) row_terms<ASigned>(g_, i, count, terms(), terms() + kMr);
        for (idx k0 = 0; k0 < g_.k; k0 += b_.kc) {
          const idx k = min_of(b_.kc, g_.k - k0);
          uint8_t* const panel = b_.keep ? packed_ + (i - m.begin) * k_ + k0 * count : packed_;
          if (direct) {
            run(i, count, k0, k, g_.a + i * g_.a_row + k0, kTileK, g_.a_row, block);
            continue;
          }
          if (n0 == n.begin) pack(g_, i, count, k0, k, panel);
          else ahead_a_.over(panel + count * padded(k, kTileK), count * b_.kc, tiles * ceil_div(k, kTileK));
          run(i, count, k0, k, panel, count * kTileK, kTileK, block);
        }
      }
    }
  }

  uint32_t* terms() const { return terms_ + (flip_ ? 2 * kMr : 0); }  // of two strips: the one before is being drained

  // A panel of A, `rows` from i and k from k0, past a block of weights.
  void run(idx i, idx rows, idx k0, idx k, const uint8_t* a, idx a_step, idx a_stride, Range block) {
    const bool last = k0 + k >= g_.k;
    int32_t* tile = sums_;
    for (idx j = block.begin; j < block.end; j += kPair) {
      int32_t* const next = b_.kc < k_ ? tile + kSumsSize : tile;
      TileJob& t = pipe_.job();
      t.i = i, t.j = j, t.cols = min_of(kPair, block.end - j);
      t.begins = j == block.begin, t.ends = j + kPair >= block.end;
      t.zero = terms(), t.sum = terms() + kMr, t.next = next;
      pipe_.ahead = ahead_a_.left > 0 ? &ahead_a_ : &ahead_w_;
      // A last panel alone is multiplied twice, side by side: another shape of tiles would empty the pipeline.
      const bool two = block.end - block.begin > kPanel;
      pipe_.shape(rows, two ? 2 : 1);
      pipe_.multiply(a, a_step, a_stride, g_.w + j / kPanel * g_.w_panel + k0 * kPanel,
                     t.cols > kPanel ? g_.w_panel : 0, ceil_div(k, kTileK), tile, k0 > 0, last);
      tile = next;
    }
  }

  const Gemm& g_;
  const Blocks b_;
  const idx k_;
  uint8_t* const packed_;
  uint32_t* const terms_;
  int32_t* const sums_;
  bool flip_ = false;
  Drain drain_;
  AmxPipe<ASigned, WSigned, Drain> pipe_;
  Ahead ahead_a_, ahead_w_;
};

double peak(idx rounds) {
  configure(32);
  alignas(64) uint8_t ones[16 * 64];
  memset(ones, 1, sizeof ones);
  QK_MEMORY_BARRIER();
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (idx i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return double(rounds) * 4 * 2 * 16 * 16 * 64;
}

}  // namespace

QK_ROWS

}  // namespace x86_amx
}  // namespace qk
