// gemm x86_amx: strips of A and blocks of weights (amx_strips.h), both bytes.
//
// The four sign pairs have an instruction each, so nothing is flipped.
// A is read in place only where every tile row is one cache line and the rows do not share sets of L1. NumPy's arrays
// begin at 16 bytes off the line as a rule, and then each row of a tile costs two lines: 3.4 against 2.6 TOPS. Rows of one
// step are read so few times that a copy of them costs more: 1×1 64@56 28.9 → 24.5 µs.
#define QK_ISA x86_amx
#define QK_TILE "32x32"
#define QK_DRIVER(as, ws) AmxDriver<as, ws>
#include "lanes_avx512.h"
#include "amx_thin.h"
#include "isa_rows.h"
#include "x86.h"

namespace qk {
namespace x86_amx {
namespace {

constexpr idx kMinM = 4;  // 2 and 3 rows: half of VNNI's time where weights come from L2, 8 % more from L3
constexpr double kGops = 3000, kCallUs = 0.2;
constexpr idx kLeastColumns = 256;

struct Plain {
  const Gemm& g;

  bool in_place() const {
    if (g.a_col != 1 || g.k % kTileK != 0 || g.a_row % 64 != 0 || g.a_row % 2048 == 0) return false;
    return g.k == kTileK || reinterpret_cast<uintptr_t>(g.a) % 64 == 0;
  }

  void pack(idx i, idx rows, idx k0, idx k, uint8_t* to) const { pack_bytes(g, i, rows, k0, k, to); }

  const uint8_t* weights(Range) const { return g.w; }

  Coming ahead(Range n) const {
    return {g.w + n.begin / kPanel * g.w_panel, ceil_div(n.end - n.begin, kPanel) * g.w_panel};
  }
};

template <bool ASigned, bool WSigned>
struct AmxDriver {
  static constexpr idx kMr = 2 * kTileRows, kNr = kPair, kKStep = kTileK;
  static constexpr bool kNeedsSums = false;

  static size_t scratch_bytes(const Gemm& g) {
    const idx strips = max_of(divide(g).total, divide(part_of(g, 0, k_part(g))).total);
    return size_t(max_of(strips, Thin<ASigned, WSigned>::scratch_bytes(g)));
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

  template <class Drain>
  static void block_of(const Gemm& g, Range m, Range n, void* scratch) {
    Strips<ASigned, WSigned, Drain, Plain>::block(g, m, n, {g}, scratch);
  }

  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    if (Thin<ASigned, WSigned>::takes(g)) return Thin<ASigned, WSigned>::block(g, m, n, scratch);
    if (!g.epilogue)
      for (idx k0 = 0, k = k_part(g); k0 < g.k; k0 += k) block_of<ToOut>(part_of(g, k0, k), m, n, scratch);
    else if (ToReal<>::takes(*g.epilogue)) block_of<ToReal<>>(g, m, n, scratch);
    else if (g.epilogue->type == Written::u8) block_of<ToCodes<uint8_t>>(g, m, n, scratch);
    else block_of<ToCodes<int8_t>>(g, m, n, scratch);
  }
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
