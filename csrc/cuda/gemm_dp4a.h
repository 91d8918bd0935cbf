// acc[i, j] = Σ_k a[i, k]·w[j, k] by dp4a, four products an instruction and lane: every GPU, and what is left to it.
//
// 64 × 64 a CTA of 8 warps, 16 × 32 a warp, 4 × 4 a lane; 32 bytes of k a stage. Words of four k lie in shared memory
// [k / 4][row], so that a lane's four rows are one access, and the lanes of a warp read 4 and 8 different ones.
//
// Contract: gemm.h. Any m, n, k ≥ 1. It is the floor, at 6 % of a tensor core's rate on Hopper.
#pragma once
#include "epilogue.h"
#include "launch.h"
#include "loader.h"

namespace qk::cuda {

struct TileDp4a {
  static constexpr int kRows = 64, kColumns = 64, kStep = 32, kThreads = 256;
  static constexpr int kWords = kStep / 4, kStageBytes = (kRows + kColumns) * kStep;
  static constexpr int kSharedBytes = 2 * kStageBytes > 64 * 64 * 4 ? 2 * kStageBytes : 64 * 64 * 4;
};

struct ArgsDp4a {
  Gemm gemm;
  Epilogue epilogue;
};

// Threads 0 … 127 bring a, the others w: 64 rows × 2 chunks each.
using LoaderDp4a = RegisterLoader<64, TileDp4a::kStep, 128>;

QK_DEVICE void put_stage_dp4a(const LoaderDp4a& loader, uint32_t stage) {
  int row, chunk;
  LoaderDp4a::place<true>(0, row, chunk);
  QK_UNROLL
  for (int word = 0; word < 4; ++word)
    ptx::store_shared(stage + ((chunk * 4 + word) * 64 + row) * 4, loader.words[0].x[word]);
}

template <bool kASigned, bool kWSigned>
QK_KERNEL(TileDp4a::kThreads, 2)
gemm_dp4a(QK_ARGUMENT ArgsDp4a args) {
  using Tile = TileDp4a;
  const Gemm& g = args.gemm;
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5;
  const int my_row = warp / 2 * 16 + lane / 8 * 4, my_column = warp % 2 * 32 + lane % 8 * 4;
  const int batch = ptx::block_z() / g.splits;
  const int64_t row = int64_t(ptx::block_x()) * Tile::kRows, column = int64_t(ptx::block_y()) * Tile::kColumns;
  const Part part = part_of(g, ptx::block_z() % g.splits, Tile::kStep);
  const bool brings_a = ptx::thread() < 128;
  LoaderDp4a loader;
  if (brings_a) loader.begin<true>(g.a + batch * g.a_batch, g.a_pitch, row, g.m, part.first, part.last);
  else loader.begin<true>(g.w + batch * g.w_batch, g.w_pitch, column, g.n, part.first, part.last);

  int32_t d[4][4];
  QK_UNROLL
  for (int i = 0; i < 4; ++i) QK_UNROLL
  for (int j = 0; j < 4; ++j) d[i][j] = 0;

  if (part.steps > 0) loader.fetch();
  QK_NO_UNROLL
  for (int step = 0; step < part.steps; ++step) {
    const uint32_t a_stage = shared + step % 2 * Tile::kStageBytes, w_stage = a_stage + Tile::kRows * Tile::kStep;
    put_stage_dp4a(loader, brings_a ? a_stage : w_stage);
    ptx::cta_sync();  // the stage is there for all
    if (step + 1 < part.steps) loader.fetch();
    QK_UNROLL
    for (int word = 0; word < Tile::kWords; ++word) {
      const Words4 x = ptx::load_shared<Words4>(a_stage + (word * 64 + my_row) * 4);
      const Words4 y = ptx::load_shared<Words4>(w_stage + (word * 64 + my_column) * 4);
      QK_UNROLL
      for (int i = 0; i < 4; ++i) QK_UNROLL
      for (int j = 0; j < 4; ++j) d[i][j] = ptx::dp4a<kASigned, kWSigned>(x.x[i], y.x[j], d[i][j]);
    }
  }
  ptx::cta_sync();  // the stages become staging

  const Staging<32> staging{shared + warp * Staging<32>::kBytes};
  QK_UNROLL
  for (int i = 0; i < 4; ++i) {
    Words4 words;
    memcpy(&words, d[i], 16);
    ptx::store_shared(staging.at(lane / 8 * 4 + i, lane % 8 * 4), words);
  }
  store_tile<32>(args.epilogue, batch, staging, row + warp / 2 * 16, column + warp % 2 * 32);
}

inline void launch_dp4a(const Gemm& g, const Epilogue& e, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = int(ceil_to(g.m, TileDp4a::kRows));
  shape.grid_y = int(ceil_to(g.n, TileDp4a::kColumns));
  shape.grid_z = int(g.batches * g.splits);
  shape.threads = TileDp4a::kThreads;
  shape.shared_bytes = TileDp4a::kSharedBytes;
  const ArgsDp4a args = {g, e};
  if (g.a_signed) launch(g.w_signed ? gemm_dp4a<true, true> : gemm_dp4a<true, false>, shape, stream, args, name);
  else launch(g.w_signed ? gemm_dp4a<false, true> : gemm_dp4a<false, false>, shape, stream, args, name);
}

}  // namespace qk::cuda
