// gemm x86_amx: tiles of 16 rows × 64 bytes, multiplied 16×64 by 64×16 in one instruction, Sapphire Rapids and later.
//
//   t0 t1 │ A rows 0…r0−1: C0 C1      t4 A upper   t6 weights panel p
//   t2 t3 │ A rows r0…r−1: C2 C3      t5 A lower   t7 weights panel p + 1
//
// Why 2×2 tiles: each loaded tile is used twice, so that loads (8 cycles from L1) keep under multiplications (16).
// A strip of A, 32 × kKc bytes, stays in L1; weights are streamed past it from L2 with tileloaddt1, which leaves L1 to
// A: 5.1 against 4.0 TOPS with plain loads on a Sapphire Rapids class core. The four sign pairs have an instruction
// each, so nothing is flipped. A is read in place where K is whole steps; it is packed when K has a tail, when its
// columns are not adjacent, and when its row stride is a multiple of 2 KiB, which would put a tile's rows into one or
// two sets of L1. Fewer rows than 32 are split evenly over the two A tiles: a multiplication's time falls with its
// rows, never with K or N.
// Why not shrink K of the tile for a tail: no cycle is saved; A's tail is packed with zeros.
// The tile configuration is loaded on entry and released on exit: another library's release would fault us.
// Source: Intel Architecture Instruction Set Extensions, chapter 3 (tile architecture).
#define QK_ISA x86_amx
#define QK_TILE "32x32"
#include "isa_rows.h"
#include "x86.h"

namespace qk {
namespace x86_amx {
namespace {

constexpr idx kMinM = 4;
constexpr double kGops = 3000, kCallUs = 0.2;
constexpr idx kTileRows = 16, kTileK = 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline idx upper_rows(idx rows) { return rows > kTileRows ? (rows + 1) / 2 : rows; }

inline void configure(idx rows) {
  TileConfig config;
  const uint8_t upper = uint8_t(upper_rows(rows)), lower = uint8_t(max_of(rows - upper, 1));
  const uint8_t of_tile[8] = {upper, upper, lower, lower, upper, lower, kTileK / kGroup, kTileK / kGroup};
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = of_tile[t];
  }
  qk_tile_loadconfig(&config);
}

#define QK_TDP(c, a, w)                                      \
  do {                                                       \
    if constexpr (ASigned && WSigned) _tile_dpbssd(c, a, w); \
    else if constexpr (ASigned) _tile_dpbsud(c, a, w);       \
    else if constexpr (WSigned) _tile_dpbusd(c, a, w);       \
    else _tile_dpbuud(c, a, w);                              \
  } while (0)

// tile[rows][32] (+)= A × two panels, or one. `Lower`: the strip has more than 16 rows.
template <bool ASigned, bool WSigned, bool Lower, bool Two>
void amx_micro(idx rows, const uint8_t* a, idx a_step, idx a_stride, const uint8_t* w, idx w_panel, idx steps,
               int32_t* tile, bool add) {
  constexpr idx kRow = 32;
  const idx upper = upper_rows(rows), row_bytes = kRow * 4;
  int32_t* const below = tile + upper * kRow;
  QK_MEMORY_BARRIER();
  if (add) {
    _tile_loadd(0, tile, row_bytes);
    if constexpr (Two) _tile_loadd(1, tile + kPanel, row_bytes);
    if constexpr (Lower) _tile_loadd(2, below, row_bytes);
    if constexpr (Lower && Two) _tile_loadd(3, below + kPanel, row_bytes);
  } else {
    _tile_zero(0);
    if constexpr (Two) _tile_zero(1);
    if constexpr (Lower) _tile_zero(2);
    if constexpr (Lower && Two) _tile_zero(3);
  }
  const uint8_t* a_below = a + upper * a_stride;
  for (idx s = 0; s < steps; ++s, a += a_step, a_below += a_step, w += kTileK * kPanel) {
    _tile_loadd(4, a, a_stride);
    _tile_stream_loadd(6, w, 64);
    QK_TDP(0, 4, 6);
    if constexpr (Two) {
      _tile_stream_loadd(7, w + w_panel, 64);
      QK_TDP(1, 4, 7);
    }
    if constexpr (Lower) {
      _tile_loadd(5, a_below, a_stride);
      QK_TDP(2, 5, 6);
    }
    if constexpr (Lower && Two) QK_TDP(3, 5, 7);
  }
  _tile_stored(0, tile, row_bytes);
  if constexpr (Two) _tile_stored(1, tile + kPanel, row_bytes);
  if constexpr (Lower) _tile_stored(2, below, row_bytes);
  if constexpr (Lower && Two) _tile_stored(3, below + kPanel, row_bytes);
  QK_MEMORY_BARRIER();
}

template <bool ASigned, bool WSigned>
struct Isa {
  static constexpr idx kMr = 2 * kTileRows, kPanels = 2, kKStep = kTileK, kKc = 1024;
  static constexpr unsigned kFlip = 0;
  static constexpr bool kRowsFirst = true;
  static constexpr idx a_bytes(idx rows, idx k) { return rows * padded(k, kTileK); }
  static bool in_place(const Gemm& g) { return g.a_col == 1 && g.k % kTileK == 0 && g.a_row % 2048 != 0; }
  static void begin() {}
  static void finish() { _tile_release(); }
  static void prepare(idx rows) { configure(rows); }

  // [k/64][rows][64], zeros behind K
  static void pack(const Gemm& g, idx i, idx rows, idx k0, idx k, uint8_t* dst) {
    for (idx s = 0; s < ceil_div(k, kTileK); ++s)
      for (idx r = 0; r < rows; ++r, dst += kTileK) {
        const uint8_t* src = g.a + (i + r) * g.a_row + (k0 + s * kTileK) * g.a_col;
        const idx have = min_of(kTileK, k - s * kTileK);
        if (g.a_col == 1 && have == kTileK) {
          memcpy(dst, src, kTileK);
        } else {
          for (idx t = 0; t < have; ++t) dst[t] = src[t * g.a_col];
          memset(dst + have, 0, size_t(kTileK - have));
        }
      }
  }

  static void micro(int rows, int panels, const uint8_t* a, idx a_step, idx a_stride, const uint8_t* w, idx w_panel,
                    idx k, int32_t* tile, bool add) {
    const auto run =
        rows > kTileRows
            ? (panels == 2 ? amx_micro<ASigned, WSigned, true, true> : amx_micro<ASigned, WSigned, true, false>)
            : (panels == 2 ? amx_micro<ASigned, WSigned, false, true> : amx_micro<ASigned, WSigned, false, false>);
    run(rows, a, a_step, a_stride, w, w_panel, k / kTileK, tile, add);
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
