// y[i, j] = Σ_k x[i, k] · scale · (w[k, j] − zero): x in f16 or bf16, weights of 4 or 8 bits, by mma.m16n8k16 from one row
// of x on (W4A16, W8A16; sm_80 and every later GPU).
//
// Weights are the instruction's 16 rows, and lie in memory as its registers want them: a lane's 16 bytes are its codes of
// 16 columns × 64 k (4 bits), fetched by cp.async into a place of its own, so that nobody waits for a barrier to read them.
// Codes become halves without a conversion: or-ed into the fraction of 1024 (f16) or 128 (bf16), less that number and the
// zero point. Every difference is exact, so are the products; scales meet the sums of a group, not the weights.
//
//   kTiles: of 8 rows of x. kPanels: of 16 columns a warp. kAcross × kDeep warps: columns × parts of a stage's k.
// Few rows are bound by memory: a stage is 16 KiB of weights, and three are under way for each CTA.
//
// Error (A11, bfloat16): products are exact, at most 1024 of them meet in one accumulator, which cuts off below 24 bits
// once for eight of them: 9·128·2⁻²³ < 2⁻¹² of Σ|x·w|, and then rounded sums of groups. No promise of 2⁻²⁰: a large
// product in front of many small ones costs all of their low bits. few_rows.h keeps that one.
//
// Why not scales multiplied into the weights, as others do: that rounds every weight once more, for as many instructions.
#pragma once
#include "experts.h"
#include "float_epilogue.h"
#include "gemm_sm80.h"

namespace qk::cuda {

template <int kTiles_, int kPanels_, int kAcross_, int kDeep_, int kBits_>
struct TileHalves {
  static constexpr int kTiles = kTiles_, kPanels = kPanels_, kAcross = kAcross_, kDeep = kDeep_, kStages = 4;
  static constexpr int kRows = kTiles * 8, kColumns = kPanels * 16 * kAcross, kThreads = 256;
  static constexpr int kXBytes = kDeep * kRows * 128, kPitch = kColumns + 4;  // of the sums: 8 rows apart, 32 banks
  static_assert(kAcross * kDeep * 32 == kThreads && kPanels <= 4, "warps of a CTA, panels of a block");
  static constexpr int kBits = kBits_, kPanelBytes = 128 * kBits, kWarpBytes = kPanels * kPanelBytes;  // 64 k of it
  static constexpr int kStageBytes = kXBytes + 8 * kWarpBytes, kSumBytes = kDeep * kRows * kPitch * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static_assert(kSharedBytes <= 99 << 10, "what a CTA of every GPU from sm_80 on may have");
};
template <int kBits>
using Halves8 = TileHalves<1, 16 / kBits, 2, 4, kBits>;  // as many bytes of either
template <int kBits>
using Halves16 = TileHalves<2, 16 / kBits, 2, 4, kBits>;
template <int kBits>
using Halves32 = TileHalves<4, 2, 4, 2, kBits>;
template <int kBits>
using Halves64 = TileHalves<8, 2, 8, 1, kBits>;

// ---------------------------------------------------------------- codes → halves
// What is taken off the codes of a lane's columns g and g + 8, next to the number they were or-ed into.
template <ptx::Half kHalf, int kBits>
struct Offsets {
  uint32_t low, high;  // pairs; of bf16 with 8 bits floats
  QK_DEVICE void set(uint32_t zero_low, uint32_t zero_high) {
    if constexpr (kHalf == ptx::Half::kF16) {
      low = 0xE400E400u | zero_low * 0x00010001u;                                                         // −1024 − z
      high = kBits == 4 ? 0xD400D400u | zero_high * 0x00100010u : 0xE400E400u | zero_high * 0x00010001u;  // −64 − z
    } else if constexpr (kBits == 4) {
      low = 0xC300C300u | zero_low * 0x00010001u;  // −128 − z
      high = 0xC300C300u | zero_high * 0x00010001u;
    } else {
      low = 0xCB000000u | zero_low;  // −2²³ − z
      high = 0xCB000000u | zero_high;
    }
  }
};

// A lane's eight weights of 16 columns × 16 k, as mma takes them.
template <ptx::Half kHalf>
QK_DEVICE void unpack4(uint32_t word, const Offsets<kHalf, 4>& by, uint32_t (&a)[4]) {
  if constexpr (kHalf == ptx::Half::kF16) {
    const uint32_t more = word >> 8;
    a[0] = ptx::add_pair(ptx::pick(word, 0x000F000Fu, 0x64006400u), by.low);
    a[1] = ptx::fma_pair<kHalf>(ptx::pick(word, 0x00F000F0u, 0x64006400u), 0x2C002C00u, by.high);  // (1024 + 16q)/16
    a[2] = ptx::add_pair(ptx::pick(more, 0x000F000Fu, 0x64006400u), by.low);
    a[3] = ptx::fma_pair<kHalf>(ptx::pick(more, 0x00F000F0u, 0x64006400u), 0x2C002C00u, by.high);
  } else {
    QK_UNROLL
    for (int i = 0; i < 4; ++i)
      a[i] = ptx::fma_pair<kHalf>(ptx::pick(word >> 4 * i, 0x000F000Fu, 0x43004300u), 0x3F803F80u,
                                  i % 2 ? by.high : by.low);
  }
}

template <ptx::Half kHalf>
QK_DEVICE void unpack8(const uint32_t* words, const Offsets<kHalf, 8>& by, uint32_t (&a)[4]) {
  QK_UNROLL
  for (int i = 0; i < 4; ++i) {  // columns g, g + 8 of the first eight k, then of the second
    const uint32_t word = words[i % 2], offset = i % 2 ? by.high : by.low;
    if constexpr (kHalf == ptx::Half::kF16) {
      a[i] = ptx::add_pair(ptx::permute(word, 0x64646464u, i < 2 ? 0x4240u : 0x4341u), offset);
    } else {
      const uint32_t first = ptx::permute(word, 0x4B000000u, i < 2 ? 0x7440u : 0x7441u),
                     second = ptx::permute(word, 0x4B000000u, i < 2 ? 0x7442u : 0x7443u);
      a[i] = ptx::bfloat_pair(as_float(first) + as_float(offset), as_float(second) + as_float(offset));
    }
  }
}

// ---------------------------------------------------------------- scales and zero points of a group
// 2·kPanels adjacent scales, as they lie: f16 and bf16 fill half of the words.
template <int kPanels>
struct GroupScales {
  uint32_t words[2 * kPanels];
  QK_DEVICE void load(const Weights& w, int64_t at) {  // at: of the lane's first column, counted in scales
    if (w.scale_type == kF32) {
      QK_UNROLL
      for (int i = 0; i < kPanels / 2; ++i) {
        const Words4 four =
            ptx::load(reinterpret_cast<const Words4*>(static_cast<const float*>(w.scales) + at + 4 * i));
        QK_UNROLL
        for (int u = 0; u < 4; ++u) words[4 * i + u] = four.x[u];
      }
    } else {
      QK_UNROLL
      for (int i = 0; i < kPanels / 2; ++i) {
        const Words2 two =
            ptx::load(reinterpret_cast<const Words2*>(static_cast<const uint16_t*>(w.scales) + at + 4 * i));
        words[2 * i] = two.x[0], words[2 * i + 1] = two.x[1];
      }
    }
  }
  QK_DEVICE void get(Output type, float (&to)[2 * kPanels]) const {
    if (type == kF32) {
      QK_UNROLL
      for (int i = 0; i < 2 * kPanels; ++i) to[i] = as_float(words[i]);
    } else if (type == kF16) {
      QK_UNROLL
      for (int i = 0; i < 2 * kPanels; ++i) to[i] = ptx::float_of_half(uint16_t(words[i / 2] >> i % 2 * 16));
    } else {
      QK_UNROLL
      for (int i = 0; i < 2 * kPanels; ++i) to[i] = as_float(i % 2 ? words[i / 2] & 0xFFFF0000u : words[i / 2] << 16);
    }
  }
};

template <int kPanels>
struct GroupZeros {
  uint32_t words[kPanels / 2];
  QK_DEVICE void load(const Weights& w, int64_t at) {
    QK_UNROLL
    for (int i = 0; i < kPanels / 2; ++i)
      words[i] =
          w.zeros ? ptx::load(reinterpret_cast<const uint32_t*>(w.zeros + at) + i) : uint32_t(w.zero) * 0x01010101u;
  }
  QK_DEVICE uint32_t get(int i) const { return words[i / 4] >> i % 4 * 8 & 0xFF; }
};

// Where a lane is along k, in units of 32: sums meet their scale at the end of a group, and after 1024 k at the latest.
struct GroupWalk {
  int units, group, last;  // of a whole group; the one that it is in, and the last there is
  int left, until;         // units to the end of the group; to the next meeting
  QK_DEVICE GroupWalk(const Weights& w, int64_t unit)
      : units(int(w.group / 32)), group(int(unit) / units), last(int(w.groups) - 1), left(units - int(unit) % units) {
    until = left < 32 ? left : 32;
  }
  QK_DEVICE bool met(int passed) {  // after so many units; whether a group begins
    left -= passed;
    const bool ended = left == 0;
    if (ended) group += group < last, left = units;
    until = left < 32 ? left : 32;
    return ended;
  }
};

// ---------------------------------------------------------------- the kernel
// One thread's part of x's stage: 16 bytes of a row at a time, of every warp's own part of k.
template <class Tile>
struct RowsLoader {
  static constexpr int kEach = Tile::kXBytes / 16 / Tile::kThreads;
  static_assert(kEach * 16 * Tile::kThreads == Tile::kXBytes, "the same for every thread");
  const uint8_t* from[kEach];
  uint32_t to[kEach];
  int left[kEach];  // bytes of the part from here on

  QK_DEVICE RowsLoader(const WeightProduct& p, const RowRange& rows, int64_t first, int64_t each, int64_t last) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int at = ptx::thread() + i * Tile::kThreads, slice = at / (Tile::kRows * 8);
      const int row = at / 8 % Tile::kRows, chunk = at % 8;
      const int64_t begin = first + slice * each, end = begin + each < last ? begin + each : last;
      const int64_t bytes = end * 128 < 2 * p.w.k ? end * 128 : 2 * p.w.k, start = begin * 128 + chunk * 16;
      const bool there = rows.first + row < rows.end && start < bytes;
      left[i] = there ? int(bytes - start) : 0;
      from[i] = static_cast<const uint8_t*>(p.x) + (there ? (rows.first + row) * p.x_pitch + start : 0);
      to[i] = slice * Tile::kRows * 128 + chunk_at<128>(row, chunk);
    }
  }
  QK_DEVICE void load(uint32_t stage) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      ptx::cp_async_16(stage + to[i], from[i], left[i] < 0 ? 0 : left[i] < 16 ? left[i] : 16);
      from[i] += 128;
      left[i] -= 128;
    }
  }
};

template <class Tile, ptx::Half kHalf>
QK_KERNEL(Tile::kThreads, 1)
halves_sm80(QK_ARGUMENT WeightProduct p) {
  constexpr int kTiles = Tile::kTiles, kPanels = Tile::kPanels, kBits = Tile::kBits;
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5, g = lane >> 2;
  const int slice = warp / Tile::kAcross, column = warp % Tile::kAcross * kPanels * 16;
  const RowRange of = rows_of<Tile::kRows>(p, ptx::block_y());
  if (of.first >= of.end) return;
  const int64_t first_column = int64_t(ptx::block_x()) * Tile::kColumns + column;
  const int64_t chunks = (p.w.k + 63) / 64, part = (chunks + p.splits - 1) / p.splits;
  const int64_t first = ptx::block_z() * part, last = first + part < chunks ? first + part : chunks;
  const int64_t each = last > first ? (last - first + Tile::kDeep - 1) / Tile::kDeep : 0;
  const int64_t begin = first + slice * each, end = begin + each < last ? begin + each : last;
  const int64_t block = first_column / 64;
  const int panel = int(first_column % 64) / 16;
  const int mine = first_column < p.w.n && end > begin ? int(end - begin) : 0;

  RowsLoader<Tile> rows(p, of, first, each, last);
  const uint8_t* codes =
      p.w.codes + of.expert * code_bytes(p.w) + ((block * chunks + begin) * 4 + panel) * Tile::kPanelBytes + lane * 16;
  const uint32_t own = Tile::kXBytes + warp * Tile::kWarpBytes + lane * 16;
  const auto fill = [&](int step) {
    const uint32_t stage = shared + step % Tile::kStages * Tile::kStageBytes;
    rows.load(stage);
    if (step < mine) {
      QK_UNROLL
      for (int i = 0; i < kPanels * kBits / 4; ++i) ptx::cp_async_16(stage + own + i * 512, codes + i * 512, 16);
      codes += 4 * Tile::kPanelBytes;
    }
  };

  GroupWalk walk(p.w, begin * 2);
  const int64_t scale_at = of.expert * places(p.w) + block * p.w.groups * 64 + g * 8 + panel * 2;  // 64 more a group
  GroupScales<kPanels> scales;
  GroupZeros<kPanels> zeros;
  Offsets<kHalf, kBits> offsets[kPanels];
  const auto enter_group = [&] {  // zeros: those of this group, which were fetched before; scales are wanted at its end
    QK_UNROLL
    for (int i = 0; i < kPanels; ++i) offsets[i].set(zeros.get(2 * i), zeros.get(2 * i + 1));
    zeros.load(p.w, scale_at + int64_t(walk.group + (walk.group < walk.last)) * 64);
    scales.load(p.w, scale_at + int64_t(walk.group) * 64);
  };
  float sums[kPanels][kTiles][4], y[kPanels][kTiles][4];
  QK_UNROLL
  for (int i = 0; i < kPanels; ++i) QK_UNROLL
  for (int t = 0; t < kTiles; ++t) QK_UNROLL
  for (int e = 0; e < 4; ++e) sums[i][t][e] = y[i][t][e] = 0.0f;
  const auto meet_scales = [&](int units) {
    float s[2 * kPanels];
    scales.get(p.w.scale_type, s);
    QK_UNROLL
    for (int i = 0; i < kPanels; ++i) QK_UNROLL
    for (int t = 0; t < kTiles; ++t) QK_UNROLL
    for (int e = 0; e < 4; ++e) {
      y[i][t][e] = ptx::fused(sums[i][t][e], s[2 * i + e / 2], y[i][t][e]);
      sums[i][t][e] = 0.0f;
    }
    if (walk.met(units)) enter_group();
  };
  if (mine > 0) {
    zeros.load(p.w, scale_at + int64_t(walk.group) * 64);
    enter_group();
  }

  QK_UNROLL
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < each) fill(step);
    ptx::cp_async_commit();
  }
  int since = 0;  // units since sums met their scales
  QK_NO_UNROLL
  for (int step = 0; step < each; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::cta_sync();  // the stage's rows are there, and all have read those of the next one
    if (step + Tile::kStages - 1 < each) fill(step + Tile::kStages - 1);
    ptx::cp_async_commit();
    if (step >= mine) continue;
    const uint32_t stage = shared + step % Tile::kStages * Tile::kStageBytes;
    const uint32_t x_stage = stage + slice * Tile::kRows * 128;
    uint32_t words[kPanels][4];
    QK_UNROLL
    for (int half = 0; half < 2; ++half) {  // 32 k
      uint32_t x[2][kTiles][2];
      if constexpr (kTiles == 1) {
        uint32_t both[4];
        ptx::ldmatrix_x4(both, x_stage + chunk_at<128>(lane & 7, half * 4 + (lane >> 3)));
        x[0][0][0] = both[0], x[0][0][1] = both[1], x[1][0][0] = both[2], x[1][0][1] = both[3];
      } else {
        QK_UNROLL
        for (int k = 0; k < 2; ++k) QK_UNROLL
        for (int t = 0; t < kTiles; t += 2) {
          uint32_t both[4];
          ptx::ldmatrix_x4(
              both, x_stage + chunk_at<128>(t * 8 + (lane & 7) + (lane >> 4) * 8, half * 4 + k * 2 + (lane >> 3 & 1)));
          x[k][t][0] = both[0], x[k][t][1] = both[1], x[k][t + 1][0] = both[2], x[k][t + 1][1] = both[3];
        }
      }
      QK_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        if (kBits == 8 || half == 0) {  // of 8 bits 32 k are 16 bytes, of 4 bits 64 k
          const auto four = ptx::load_shared<Words4>(stage + own + (i * kBits / 4 + half * (kBits == 8)) * 512);
          QK_UNROLL
          for (int u = 0; u < 4; ++u) words[i][u] = four.x[u];
        }
        QK_UNROLL
        for (int k = 0; k < 2; ++k) {
          uint32_t a[4];
          if constexpr (kBits == 4) unpack4<kHalf>(words[i][half * 2 + k], offsets[i], a);
          else unpack8<kHalf>(words[i] + 2 * k, offsets[i], a);
          QK_UNROLL
          for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k16<kHalf>(sums[i][t], a, x[k][t]);
        }
      }
      if (++since == walk.until) {
        meet_scales(since);
        since = 0;
      }
    }
  }
  if (since > 0) meet_scales(since);
  ptx::cp_async_wait<0>();
  ptx::cta_sync();  // the stages become room for sums

  const int q = lane & 3;
  QK_UNROLL
  for (int i = 0; i < kPanels; ++i) QK_UNROLL
  for (int t = 0; t < kTiles; ++t) QK_UNROLL
  for (int e = 0; e < 4; ++e) {
    const int row = slice * Tile::kRows + t * 8 + 2 * q + e % 2, at = column + i * 16 + g + e / 2 * 8;
    ptx::store_shared(shared + (row * Tile::kPitch + at) * 4, y[i][t][e]);
  }
  ptx::cta_sync();  // all sums are there
  const Epilogue epilogue = epilogue_of(p, of);
  QK_NO_UNROLL
  for (int at = ptx::thread() * 4; at < Tile::kRows * Tile::kColumns; at += Tile::kThreads * 4) {
    const int row = at / Tile::kColumns, across = at % Tile::kColumns;
    float total[4] = {0, 0, 0, 0};
    QK_UNROLL
    for (int deep = 0; deep < Tile::kDeep; ++deep) {  // ascending: the same bits from run to run
      const auto words = ptx::load_shared<Words4>(shared + ((deep * Tile::kRows + row) * Tile::kPitch + across) * 4);
      QK_UNROLL
      for (int v = 0; v < 4; ++v) total[v] = total[v] + as_float(words.x[v]);
    }
    deliver(p, epilogue, ptx::block_z(), of.first + row, int64_t(ptx::block_x()) * Tile::kColumns + across, total);
  }
}

template <class Tile>
void launch_halves_of(const WeightProduct& p, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = int(ceil_to(p.w.n, Tile::kColumns));
  shape.grid_y = row_tiles(p, Tile::kRows);
  shape.grid_z = p.splits;
  shape.threads = Tile::kThreads;
  shape.shared_bytes = Tile::kSharedBytes;
  launch(p.x_type == kF16 ? halves_sm80<Tile, ptx::Half::kF16> : halves_sm80<Tile, ptx::Half::kBf16>, shape, stream, p,
         name);
}

template <template <int> class Tile>
void launch_halves(const WeightProduct& p, Stream stream, const char* name) {
  if (p.w.bits == 4) launch_halves_of<Tile<4>>(p, stream, name);
  else launch_halves_of<Tile<8>>(p, stream, name);
}

}  // namespace qk::cuda
