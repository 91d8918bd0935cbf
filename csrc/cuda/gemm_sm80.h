// acc[i, j] = Σ_k a[i, k]·w[j, k] by mma.m16n8k32 (sm_80 and every later GPU; Hopper has gemm_sm90a.h).
//
// A CTA of 8 warps multiplies kRows × kColumns, kStep bytes of k a stage. cp.async fills kStages of them ahead; ldmatrix
// reads fragments without bank conflicts, since the 16-byte chunks of a row are exchanged by its number.
//   128 × 128, warps 2 × 4: 64 × 32 a warp, 64 accumulators a lane; 4 stages of 16 KiB, two CTAs an SM.
//   128 ×  16, warps 8 × 1, operands swapped: 16 rows of a, or fewer, against 128 weights; with parts of k, small m.
// k's tail, and rows beyond m and n, are zeros that cp.async writes by itself.
//
// Contract: gemm.h. Any m, n, k ≥ 1. Source: PTX ISA, mma.m16n8k32 fragments; CuTe SM80_16x8x32_S32S8S8S32_TN.
// Why not one warp a 32 × 64 tile: the same loads, but 8 of A's fragments would be read by four warps instead of B's.
#pragma once
#include "epilogue.h"
#include "launch.h"
#include "loader.h"

namespace qk::cuda {

template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStep_, int kStages_, bool kSwapped_>
struct Tile80 {
  static constexpr int kRows = kRows_, kColumns = kColumns_;  // of the CTA
  static constexpr int kWarpsDown = kRows_ / kWarpRows_, kWarpsAcross = kColumns_ / kWarpColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kStep = kStep_, kStages = kStages_;
  static constexpr bool kSwapped = kSwapped_;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kStageBytes = (kRows + kColumns) * kStep;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kThreads == 256 && kRows * kColumns * 4 <= kSharedBytes, "the sums fit where the stages were");
};
using Large80 = Tile80<128, 128, 64, 32, 64, 4, false>;
using Small80 = Tile80<128, 16, 16, 16, 128, 4, true>;

struct Args80 {
  Gemm gemm;  // rows of `a` are the tile's rows: of Swapped tiles the weights
  Epilogue epilogue;
};

// Where chunk c (16 bytes) of row r lies in a stage: rows of one 128-byte line of banks have different chunks there.
template <int kStep>
QK_DEVICE uint32_t chunk_at(int row, int chunk) {
  static_assert(kStep == 64 || kStep == 128, "rows of half a line, or of a line");
  const int mixed = kStep == 64 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7);
  return row * kStep + mixed * 16;
}

// One thread's part of an operand's stage: its chunks' addresses are worked out once, and moved by kStep.
template <int kSize, int kStep, int kThreads>
struct Loader {
  static constexpr int kChunks = kStep / 16, kEach = (kSize * kChunks + kThreads - 1) / kThreads;
  const uint8_t* from[kEach];
  uint32_t to[kEach];
  int left[kEach];  // bytes of k from the chunk on, of the next stage; far below 0 in rows that are not there

  QK_DEVICE Loader(const uint8_t* data, int64_t pitch, int64_t first_row, int64_t rows, int64_t first_k,
                   int64_t last_k) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int at = ptx::thread() + i * kThreads, row = at / kChunks, chunk = at % kChunks;
      const bool there = row < kSize && first_row + row < rows;
      to[i] = chunk_at<kStep>(row, chunk);
      left[i] = there ? int(last_k - first_k) - chunk * 16 : -(1 << 30);
      from[i] = data + (there ? (first_row + row) * pitch + first_k + chunk * 16 : 0);
    }
  }
  QK_DEVICE void load(uint32_t stage) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int bytes = left[i] < 0 ? 0 : left[i] < 16 ? left[i] : 16;
      if (kSize * kChunks % kThreads == 0 || ptx::thread() + i * kThreads < kSize * kChunks)
        ptx::cp_async_16(stage + to[i], from[i], bytes);
      from[i] += kStep;
      left[i] -= kStep;
    }
  }
};

// The product itself, whatever brings its operands: a.load(stage) and w.load(stage) the next step's. `row` and `column` of
// the result are the tile's first, columns from `end` on are not there.
template <class Tile, bool kASigned, bool kWSigned, class ALoader, class WLoader>
QK_DEVICE void multiply_80(ALoader& a, WLoader& w, const Part& part, const Epilogue& epilogue, int batch, int64_t row,
                           int64_t column, int64_t end) {
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5;
  const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const int warp_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
  const auto fill = [&](int step) {
    const uint32_t stage = shared + step % Tile::kStages * Tile::kStageBytes;
    a.load(stage);
    w.load(stage + Tile::kRows * Tile::kStep);
  };

  constexpr int kDown = Tile::kWarpRows / 16, kAcross = Tile::kWarpColumns / 8;
  int32_t d[kDown][kAcross][4];
  QK_UNROLL
  for (int i = 0; i < kDown; ++i) QK_UNROLL
  for (int j = 0; j < kAcross; ++j) QK_UNROLL
  for (int e = 0; e < 4; ++e) d[i][j][e] = 0;

  QK_UNROLL
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < part.steps) fill(step);
    ptx::cp_async_commit();
  }
  QK_NO_UNROLL
  for (int step = 0; step < part.steps; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::cta_sync();  // the stage is there, and all have read the next one
    if (step + Tile::kStages - 1 < part.steps) fill(step + Tile::kStages - 1);
    ptx::cp_async_commit();
    const uint32_t a_stage = shared + step % Tile::kStages * Tile::kStageBytes,
                   w_stage = a_stage + Tile::kRows * Tile::kStep;
    QK_UNROLL
    for (int k = 0; k < Tile::kStep / 32; ++k) {
      uint32_t x[kDown][4], y[kAcross][2];
      QK_UNROLL
      for (int i = 0; i < kDown; ++i)  // lanes 0 … 15 name the rows of the first 16 k, 16 … 31 of the second
        ptx::ldmatrix_x4(x[i], a_stage + chunk_at<Tile::kStep>(warp_row + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
      QK_UNROLL
      for (int j = 0; j < kAcross; j += 2) {  // two columns of fragments at a time
        uint32_t both[4];
        ptx::ldmatrix_x4(both, w_stage + chunk_at<Tile::kStep>(warp_column + j * 8 + (lane & 7) + (lane >> 4) * 8,
                                                               k * 2 + (lane >> 3 & 1)));
        y[j][0] = both[0], y[j][1] = both[1], y[j + 1][0] = both[2], y[j + 1][1] = both[3];
      }
      QK_UNROLL
      for (int i = 0; i < kDown; ++i) QK_UNROLL
      for (int j = 0; j < kAcross; ++j) ptx::mma_m16n8k32<kASigned, kWSigned>(d[i][j], x[i], y[j]);
    }
  }
  ptx::cp_async_wait<0>();
  ptx::cta_sync();  // the stages become staging

  // All of them first: a loop over rows of fragments that stay in registers would be unrolled, and spill.
  const uint32_t staged = shared + warp * kDown * Staging<Tile::kWarpColumns>::kBytes;
  QK_UNROLL
  for (int i = 0; i < kDown; ++i) QK_UNROLL
  for (int j = 0; j < kAcross; ++j)
    Staging<Tile::kWarpColumns>{staged + i * Staging<Tile::kWarpColumns>::kBytes}.put(j * 8, d[i][j]);
  QK_NO_UNROLL
  for (int i = 0; i < kDown; ++i)
    store_tile<Tile::kWarpColumns, Tile::kSwapped>(epilogue, batch, {staged + i * Staging<Tile::kWarpColumns>::kBytes},
                                                   row + warp_row + i * 16, column + warp_column, end);
}

template <class Tile, bool kASigned, bool kWSigned>
QK_KERNEL(Tile::kThreads, 2)
gemm_sm80(QK_ARGUMENT Args80 args) {
  const Gemm& g = args.gemm;
  const int batch = ptx::block_z() / g.splits;
  const int64_t row = int64_t(ptx::block_x()) * Tile::kRows, column = int64_t(ptx::block_y()) * Tile::kColumns;
  const Part part = part_of(g, ptx::block_z() % g.splits, Tile::kStep);
  Loader<Tile::kRows, Tile::kStep, Tile::kThreads> a(g.a + batch * g.a_batch, g.a_pitch, row, g.m, part.first,
                                                     part.last);
  Loader<Tile::kColumns, Tile::kStep, Tile::kThreads> w(g.w + batch * g.w_batch, g.w_pitch, column, g.n, part.first,
                                                        part.last);
  multiply_80<Tile, kASigned, kWSigned>(a, w, part, args.epilogue, batch, row, column, args.epilogue.n);
}

template <class Tile>
void launch_sm80(const Gemm& g, const Epilogue& e, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = int(ceil_to(g.m, Tile::kRows));
  shape.grid_y = int(ceil_to(g.n, Tile::kColumns));
  shape.grid_z = int(g.batches * g.splits);
  shape.threads = Tile::kThreads;
  shape.shared_bytes = Tile::kSharedBytes;
  const Args80 args = {g, e};
  if (g.a_signed)
    launch(g.w_signed ? gemm_sm80<Tile, true, true> : gemm_sm80<Tile, true, false>, shape, stream, args, name);
  else launch(g.w_signed ? gemm_sm80<Tile, false, true> : gemm_sm80<Tile, false, false>, shape, stream, args, name);
}

}  // namespace qk::cuda
