// Parts of k of a product whose sums are floats, added up, and the epilogue after them.
#pragma once
#include "float_epilogue.h"
#include "launch.h"

namespace qk::cuda {

// The parts, added in ascending order: the same bits from run to run.
QK_KERNEL(256, 4) add_parts(QK_ARGUMENT WeightProduct p) {
  const int64_t across = (p.w.n + 3) / 4, at = int64_t(ptx::block_x()) * 256 + ptx::thread();
  if (at >= across * p.m) return;
  const int64_t i = at / across, j = at % across * 4;
  float sums[4] = {0, 0, 0, 0};
  QK_NO_UNROLL
  for (int split = 0; split < p.splits; ++split) {
    const float* from = p.parts + (split * p.m + i) * p.w.n + j;
    if (p.w.n % 4 == 0) {
      const Words4 words = ptx::load(reinterpret_cast<const Words4*>(from));
      float part[4];
      memcpy(part, &words, 16);
      QK_UNROLL
      for (int v = 0; v < 4; ++v) sums[v] = sums[v] + part[v];
    } else {
      QK_UNROLL
      for (int v = 0; v < 4; ++v)
        if (j + v < p.w.n) sums[v] = sums[v] + ptx::load(from + v);
    }
  }
  finish_floats(p.epilogue, i, j, sums);
}

inline void launch_add_parts(const WeightProduct& p, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(ceil_to(p.w.n, 4) * p.m, 256));
  shape.threads = 256;
  launch(add_parts, shape, stream, p, "add_parts");
}

}  // namespace qk::cuda
