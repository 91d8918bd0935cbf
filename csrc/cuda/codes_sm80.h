// y[i, j] = Σ over groups of scale · Σ_{k of it} x[i, k] · (w[k, j] − zero): x int8 codes, weights of 4 or 8 bits (W4A8), by
// mma.m16n8k32 (sm_80 and every later GPU). Every sum of a group is an integer and exact; A10 says what becomes of them:
// an fma each, groups ascending, or their sum by integer factors. So k is not split, and the bits are the CPU's.
//
// Weights are the instruction's 16 rows, unsigned as they are packed (two instructions for eight of four bits); zero points
// are taken off the sums, by Σ x of the group, which one product more with ones gives where it is wanted.
//
// Why not zero points off the bytes, x · (w − z): three instructions more for eight weights, against a product in five.
#pragma once
#include "experts.h"
#include "float_epilogue.h"
#include "gemm_sm80.h"
#include "halves_sm80.h"

namespace qk::cuda {

enum class Sums {
  kFloats,
  kIntegers
};  // scales of groups in floats; two-level factors, or one group and no scale at all

template <int kTiles_, int kPanels_, int kAcross_, int kDown_, int kBits_>
struct TileCodes {
  static constexpr int kTiles = kTiles_, kPanels = kPanels_, kAcross = kAcross_, kDown = kDown_, kBits = kBits_;
  static constexpr int kRows = kTiles * 8 * kDown, kColumns = kPanels * 16 * kAcross, kStages = 4, kThreads = 256;
  static constexpr int kPanelBytes = 128 * kBits;  // 64 k
  static constexpr int kXBytes = kRows * 64, kStageBytes = kXBytes + kColumns / 16 * kPanelBytes;
  static constexpr int kSumBytes = kRows * kColumns * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static_assert(kAcross * kDown * 32 == kThreads && 4 % kPanels == 0, "the warps of a CTA, panels of a block");
};
template <int kBits>
using Codes16 = TileCodes<2, 1, 8, 1, kBits>;
template <int kBits>
using Codes32 = TileCodes<4, 2, 8, 1, kBits>;
template <int kBits>
using Codes128 = TileCodes<4, 4, 2, 4, kBits>;

template <bool kFloats>
struct ByKind {
  using Type = float;
};
template <>
struct ByKind<false> {
  using Type = int32_t;
};

// What a group's sum is multiplied with.
template <Sums kSums>
QK_DEVICE typename ByKind<kSums == Sums::kFloats>::Type weight_of(const Weights& w, int64_t at) {
  if constexpr (kSums == Sums::kIntegers) return w.factors ? int32_t(ptx::load(w.factors + at)) : 1;
  else if (w.scale_type == kF32) return ptx::load(static_cast<const float*>(w.scales) + at);
  const uint16_t half = ptx::load(static_cast<const uint16_t*>(w.scales) + at);
  return w.scale_type == kF16 ? ptx::float_of_half(half) : bfloat_to_float(half);
}

// One thread's part of the weights' stage: whole panels, as they lie.
template <class Tile>
struct PanelLoader {
  static constexpr int kPieces = Tile::kPanelBytes / 16, kEach = Tile::kColumns / 16 * kPieces / Tile::kThreads;
  static_assert(kEach * Tile::kThreads == Tile::kColumns / 16 * kPieces, "the same for every thread");
  const uint8_t* from[kEach];
  bool there[kEach];

  QK_DEVICE PanelLoader(const Weights& w, int64_t expert, int64_t first_column) {
    const int64_t chunks = (w.k + 63) / 64;
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int at = ptx::thread() + i * Tile::kThreads;
      const int64_t panel = first_column / 16 + at / kPieces;
      there[i] = panel / 4 * 64 < w.n;
      from[i] = w.codes + expert * code_bytes(w) +
                (there[i] ? (panel / 4 * chunks * 4 + panel % 4) * Tile::kPanelBytes + at % kPieces * 16 : int64_t(0));
    }
  }
  QK_DEVICE void load(uint32_t stage) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      ptx::cp_async_16(stage + (ptx::thread() + i * Tile::kThreads) * 16, from[i], there[i] ? 16 : 0);
      from[i] += there[i] ? 4 * Tile::kPanelBytes : 0;
    }
  }
};

// 16 columns × kColumns rows of the result, floats in the staging of one warp.
template <int kColumns>
QK_DEVICE void store_floats(const Epilogue& e, Staging<kColumns> staging, int64_t row, int64_t column) {
  QK_NO_UNROLL
  for (int at = ptx::thread() & 31; at < 4 * kColumns; at += 32) {
    const int down = at / 4, across = at % 4 * 4;
    if (row + down >= e.m || column + across >= e.n) continue;
    float y[4];
    QK_UNROLL
    for (int v = 0; v < 4; ++v) y[v] = ptx::load_shared<float>(staging.at(across + v, down));
    finish_floats(e, row + down, column + across, y);
  }
}

template <class Tile, Sums kSums>
QK_KERNEL(Tile::kThreads, 1)
codes_sm80(QK_ARGUMENT WeightProduct p) {
  constexpr int kTiles = Tile::kTiles, kPanels = Tile::kPanels, kBits = Tile::kBits;
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5, g = lane >> 2;
  const int warp_row = warp / Tile::kAcross * kTiles * 8, warp_panel = warp % Tile::kAcross * kPanels;
  const RowRange rows = rows_of<Tile::kRows>(p, ptx::block_x());
  if (rows.first >= rows.end) return;
  const int64_t row = rows.first, column = int64_t(ptx::block_y()) * Tile::kColumns;
  const int64_t panel = column / 16 + warp_panel;
  const int chunks = int((p.w.k + 63) / 64);
  const bool there = panel * 16 < p.w.n;

  Loader<Tile::kRows, 64, Tile::kThreads> x_loader(static_cast<const uint8_t*>(p.x), p.x_pitch, row, rows.end, 0,
                                                   p.w.k);
  PanelLoader<Tile> w_loader(p.w, rows.expert, column);
  const auto fill = [&](int step) {
    const uint32_t stage = shared + step % Tile::kStages * Tile::kStageBytes;
    x_loader.load(stage);
    w_loader.load(stage + Tile::kXBytes);
  };

  GroupWalk walk(p.w, 0);
  // Of the lane's columns in the arrays of groups, carried along: worked out anew it was an instruction more for each mma.
  int64_t group_at = rows.expert * places(p.w) + panel / 4 * p.w.groups * 64 + g * 8 + panel % 4 * 2;
  int32_t acc[kPanels][kTiles][4], sums[kTiles][4];
  using Total = typename ByKind<kSums == Sums::kFloats>::Type;
  Total y[kPanels][kTiles][4];
  QK_UNROLL
  for (int t = 0; t < kTiles; ++t) QK_UNROLL
  for (int e = 0; e < 4; ++e) {
    sums[t][e] = 0;
    QK_UNROLL
    for (int i = 0; i < kPanels; ++i) acc[i][t][e] = 0, y[i][t][e] = 0;
  }
  const auto end_group = [&] {
    QK_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      const int64_t at = group_at + i * 2;
      uint32_t zero[2];
      QK_UNROLL
      for (int h = 0; h < 2; ++h) zero[h] = p.w.zeros ? ptx::load(p.w.zeros + at + h) : uint32_t(p.w.zero);
      Total by[2];
      QK_UNROLL
      for (int h = 0; h < 2; ++h) by[h] = weight_of<kSums>(p.w, at + h);
      QK_UNROLL
      for (int t = 0; t < kTiles; ++t) QK_UNROLL
      for (int e = 0; e < 4; ++e) {
        const auto sum = int32_t(uint32_t(acc[i][t][e]) - zero[e / 2] * uint32_t(sums[t][e % 2]));
        if constexpr (kSums == Sums::kFloats) y[i][t][e] = ptx::fused(float(sum), by[e / 2], y[i][t][e]);
        else y[i][t][e] = int32_t(uint32_t(y[i][t][e]) + uint32_t(by[e / 2]) * uint32_t(sum));
        acc[i][t][e] = 0;
      }
    }
    QK_UNROLL
    for (int t = 0; t < kTiles; ++t) QK_UNROLL
    for (int e = 0; e < 4; ++e) sums[t][e] = 0;
    group_at += 64;
  };

  QK_UNROLL
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < chunks) fill(step);
    ptx::cp_async_commit();
  }
  int until = walk.units;  // units of 32 k to the end of the group
  QK_NO_UNROLL
  for (int step = 0; step < chunks; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::cta_sync();  // the stage is there, and all have read the next one
    if (step + Tile::kStages - 1 < chunks) fill(step + Tile::kStages - 1);
    ptx::cp_async_commit();
    if (!there) continue;
    const uint32_t x_stage = shared + step % Tile::kStages * Tile::kStageBytes;
    const uint32_t w_stage = x_stage + Tile::kXBytes + warp_panel * Tile::kPanelBytes + lane * 16;
    uint32_t words[kPanels][4];
    QK_UNROLL
    for (int half = 0; half < 2; ++half) {  // 32 k
      uint32_t x[kTiles][2];
      QK_UNROLL
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t both[4];
        ptx::ldmatrix_x4(
            both, x_stage + chunk_at<64>(warp_row + t * 8 + (lane & 7) + (lane >> 4) * 8, half * 2 + (lane >> 3 & 1)));
        x[t][0] = both[0], x[t][1] = both[1], x[t + 1][0] = both[2], x[t + 1][1] = both[3];
      }
      QK_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        if (kBits == 8 || half == 0) {
          const auto four = ptx::load_shared<Words4>(w_stage + (i * kBits / 4 + half * (kBits == 8)) * 512);
          QK_UNROLL
          for (int u = 0; u < 4; ++u) words[i][u] = four.x[u];
        }
        uint32_t a[4];
        if constexpr (kBits == 4) {
          QK_UNROLL
          for (int s = 0; s < 2; ++s) {
            a[2 * s] = words[i][2 * half + s] & 0x0F0F0F0Fu;
            a[2 * s + 1] = words[i][2 * half + s] >> 4 & 0x0F0F0F0Fu;
          }
        } else {
          QK_UNROLL
          for (int u = 0; u < 4; ++u) a[u] = words[i][u];
        }
        QK_UNROLL
        for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k32<false, true>(acc[i][t], a, x[t]);
      }
      const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
      QK_UNROLL
      for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k32<false, true>(sums[t], ones, x[t]);
      if (--until == 0) {
        if (walk.group <= walk.last) end_group();  // of a last block half empty there is none
        walk.group += 1;
        until = walk.units;
      }
    }
  }
  if (there && walk.group <= walk.last) end_group();
  ptx::cp_async_wait<0>();
  ptx::cta_sync();  // the stages become staging

  using Stage = Staging<kTiles * 8>;
  const Epilogue epilogue = epilogue_of(p, rows);
  const uint32_t staged = shared + warp * kPanels * Stage::kBytes;
  QK_UNROLL
  for (int i = 0; i < kPanels; ++i) QK_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    int32_t bits[4];
    memcpy(bits, y[i][t], 16);
    Stage{staged + i * Stage::kBytes}.put(t * 8, bits);
  }
  ptx::warp_sync();
  QK_NO_UNROLL
  for (int i = 0; i < kPanels; ++i) {
    const Stage staging{staged + i * Stage::kBytes};
    if constexpr (kSums == Sums::kFloats) store_floats(epilogue, staging, row + warp_row, (panel + i) * 16);
    else store_tile<kTiles * 8, true>(epilogue, 0, staging, (panel + i) * 16, row + warp_row);
  }
}

template <class Tile, Sums kSums>
void launch_codes_of(const WeightProduct& p, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = row_tiles(p, Tile::kRows);
  shape.grid_y = int(ceil_to(p.w.n, Tile::kColumns));
  shape.threads = Tile::kThreads;
  shape.shared_bytes = Tile::kSharedBytes;
  launch(codes_sm80<Tile, kSums>, shape, stream, p, name);
}

// 8-bit weights with integer sums, for experts: one weight for all is an ordinary product, gemm_sm80.h.
template <template <int> class Tile>
void launch_codes(const WeightProduct& p, Stream stream, const char* name) {
  if (!p.w.scales && p.w.bits == 8) launch_codes_of<Tile<8>, Sums::kIntegers>(p, stream, name);
  else if (!p.w.scales) launch_codes_of<Tile<4>, Sums::kIntegers>(p, stream, name);
  else if (p.w.bits == 4) launch_codes_of<Tile<4>, Sums::kFloats>(p, stream, name);
  else launch_codes_of<Tile<8>, Sums::kFloats>(p, stream, name);
}

}  // namespace qk::cuda
