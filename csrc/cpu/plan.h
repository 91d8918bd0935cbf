// From one call to blocks on threads: batches, packing of plain weights, the split of the output.
#pragma once
#include "../kernel.h"

namespace qk {

RowList all_rows();  // rows.cpp: every kernel of this build

constexpr int kMaxBatchDims = 16;

// A batched product. Weights are packed (w != null in `one`), or plain and packed on the way. Strides in bytes.
struct Job {
  Gemm one;  // pointers are those of batch 0
  const uint8_t* plain;
  idx plain_row, plain_col;
  idx a_zero_step, w_zero_step;  // bytes between two values; 0: one for all
  int dims;
  idx shape[kMaxBatchDims], a[kMaxBatchDims], w[kMaxBatchDims], out[kMaxBatchDims], a_zero[kMaxBatchDims],
      w_zero[kMaxBatchDims];
};

double estimated_us(const KernelRow& row, idx m, idx n, idx k);

// At most `threads` threads, fewer where the work is not worth waking them; exactly so many when `forced`.
// False when memory for the scratch could not be had; out may then be partly written.
bool run(const KernelRow& row, const Job& job, int threads, bool forced = false);

}  // namespace qk
