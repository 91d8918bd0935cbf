// The epilogue alone, on int32 sums that lie in memory: after the parts of k were added up.
#pragma once
#include "epilogue.h"
#include "launch.h"

namespace qk::cuda {

struct FinishArgs {
  const int32_t* sums;  // (batches, m, n), adjacent
  int64_t batches;
  Epilogue epilogue;
};

// A thread: kV columns of a row.
template <int kV>
QK_DEVICE void finish_columns(const FinishArgs& args) {
  const Epilogue& e = args.epilogue;
  const int64_t across = (e.n + kV - 1) / kV, at = int64_t(ptx::block_x()) * 256 + ptx::thread();
  if (at >= across * e.m * args.batches) return;
  const int64_t row = at / across, j = at % across * kV;
  const int32_t* sums = args.sums + row * e.n + j;
  if (in_vectors(e) && j + kV <= e.n && e.n % 4 == 0) {
    int32_t acc[kV];
    QK_UNROLL
    for (int v = 0; v < kV; v += 4) {
      const Words4 words = ptx::load(reinterpret_cast<const Words4*>(sums + v));
      memcpy(acc + v, &words, 16);
    }
    finish(e, row / e.m, row % e.m, j, acc);
  } else {
    QK_NO_UNROLL
    for (int v = 0; v < kV && j + v < e.n; ++v) finish_one(e, row / e.m, row % e.m, j + v, ptx::load(sums + v));
  }
}

QK_KERNEL(256, 2) finish_sums(QK_ARGUMENT FinishArgs args) {
  const int item = bytes_of(args.epilogue.output);
  if (item == 1) finish_columns<16>(args);
  else if (item == 2) finish_columns<8>(args);
  else finish_columns<4>(args);
}

inline void launch_finish(const int32_t* sums, int64_t batches, const Epilogue& e, Stream stream) {
  const int v = 16 / bytes_of(e.output);
  Shape shape;
  shape.grid_x = int(ceil_to(ceil_to(e.n, v) * e.m * batches, 256));
  shape.threads = 256;
  launch(finish_sums, shape, stream, FinishArgs{sums, batches, e}, "finish_sums");
}

}  // namespace qk::cuda
