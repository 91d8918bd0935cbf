// acc[i, j] = Σ_k a[i, k]·w[j, k] by mma.m8n8k16 (sm_75, Turing).
//
// 128 × 128 a CTA of 8 warps, 2 × 4, 64 × 32 a warp; 64 bytes of k a stage. There is no cp.async: the next stage waits in
// registers while this one is multiplied, and two stages of shared memory make one barrier a stage enough.
// A fragment of m8n8k16 is one 8 × 16-byte matrix of ldmatrix: its x4 form brings four fragments.
//
// Contract: gemm.h. Any m, n, k ≥ 1. Source: PTX ISA, mma.m8n8k16 fragments.
#pragma once
#include "epilogue.h"
#include "launch.h"
#include "loader.h"

namespace qk::cuda {

struct Tile75 {
  static constexpr int kRows = 128, kColumns = 128, kStep = 64, kThreads = 256;
  static constexpr int kWarpRows = 64, kWarpColumns = 32, kWarpsAcross = 4;
  static constexpr int kStageBytes = (kRows + kColumns) * kStep;
  static constexpr int kSharedBytes = 2 * kStageBytes;
};

struct Args75 {
  Gemm gemm;
  Epilogue epilogue;
};

QK_DEVICE uint32_t chunk_at_75(int row, int chunk) { return row * Tile75::kStep + (chunk ^ (row >> 1 & 3)) * 16; }

using Loader75 = RegisterLoader<128, Tile75::kStep, Tile75::kThreads>;

QK_DEVICE void put_stage_75(const Loader75& loader, uint32_t stage) {
  QK_UNROLL
  for (int i = 0; i < Loader75::kEach; ++i) {
    int row, chunk;
    Loader75::place<false>(i, row, chunk);
    ptx::store_shared(stage + chunk_at_75(row, chunk), loader.words[i]);
  }
}

template <bool kASigned, bool kWSigned>
QK_KERNEL(Tile75::kThreads, 1)
gemm_sm75(QK_ARGUMENT Args75 args) {
  const Gemm& g = args.gemm;
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5;
  const int warp_row = warp / Tile75::kWarpsAcross * Tile75::kWarpRows;
  const int warp_column = warp % Tile75::kWarpsAcross * Tile75::kWarpColumns;
  const int batch = ptx::block_z() / g.splits;
  const int64_t row = int64_t(ptx::block_x()) * Tile75::kRows, column = int64_t(ptx::block_y()) * Tile75::kColumns;
  const Part part = part_of(g, ptx::block_z() % g.splits, Tile75::kStep);
  Loader75 a, w;
  a.begin<false>(g.a + batch * g.a_batch, g.a_pitch, row, g.m, part.first, part.last);
  w.begin<false>(g.w + batch * g.w_batch, g.w_pitch, column, g.n, part.first, part.last);

  constexpr int kDown = Tile75::kWarpRows / 8, kAcross = Tile75::kWarpColumns / 8;
  int32_t d[kDown][kAcross][2];
  QK_UNROLL
  for (int i = 0; i < kDown; ++i) QK_UNROLL
  for (int j = 0; j < kAcross; ++j) d[i][j][0] = d[i][j][1] = 0;

  if (part.steps > 0) a.fetch(), w.fetch();
  QK_NO_UNROLL
  for (int step = 0; step < part.steps; ++step) {
    const uint32_t a_stage = shared + step % 2 * Tile75::kStageBytes, w_stage = a_stage + Tile75::kRows * Tile75::kStep;
    put_stage_75(a, a_stage);
    put_stage_75(w, w_stage);
    ptx::cta_sync();  // the stage is there, and all have read the other one
    if (step + 1 < part.steps) a.fetch(), w.fetch();
    QK_UNROLL
    for (int k = 0; k < Tile75::kStep / 16; ++k) {
      uint32_t x[kDown], y[kAcross];
      QK_UNROLL
      for (int i = 0; i < kDown; i += 4)
        ptx::ldmatrix_x4(reinterpret_cast<uint32_t (&)[4]>(x[i]), a_stage + chunk_at_75(warp_row + i * 8 + lane, k));
      ptx::ldmatrix_x4(y, w_stage + chunk_at_75(warp_column + lane, k));
      QK_UNROLL
      for (int i = 0; i < kDown; ++i) QK_UNROLL
      for (int j = 0; j < kAcross; ++j) ptx::mma_m8n8k16<kASigned, kWSigned>(d[i][j], x[i], y[j]);
    }
  }
  ptx::cta_sync();  // the stages become staging: 8 KiB a warp

  using Rows = Staging<Tile75::kWarpColumns>;
  const uint32_t staged = shared + warp * kDown / 2 * Rows::kBytes;
  QK_UNROLL
  for (int i = 0; i < kDown; i += 2) QK_UNROLL
  for (int j = 0; j < kAcross; ++j) {
    const int32_t both[4] = {d[i][j][0], d[i][j][1], d[i + 1][j][0], d[i + 1][j][1]};
    Rows{staged + i / 2 * Rows::kBytes}.put(j * 8, both);
  }
  QK_NO_UNROLL
  for (int i = 0; i < kDown / 2; ++i)
    store_tile<Tile75::kWarpColumns>(args.epilogue, batch, {staged + i * Rows::kBytes}, row + warp_row + i * 16,
                                     column + warp_column);
}

inline void launch_sm75(const Gemm& g, const Epilogue& e, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = int(ceil_to(g.m, Tile75::kRows));
  shape.grid_y = int(ceil_to(g.n, Tile75::kColumns));
  shape.grid_z = int(g.batches * g.splits);
  shape.threads = Tile75::kThreads;
  shape.shared_bytes = 64 << 10;  // the sums; the stages are half of it
  const Args75 args = {g, e};
  if (g.a_signed) launch(g.w_signed ? gemm_sm75<true, true> : gemm_sm75<true, false>, shape, stream, args, name);
  else launch(g.w_signed ? gemm_sm75<false, true> : gemm_sm75<false, false>, shape, stream, args, name);
}

}  // namespace qk::cuda
