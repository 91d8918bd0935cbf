// One thread's part of an operand's stage, fetched through registers: for GPUs without cp.async (sm_75, dp4a).
#pragma once
#include "calls.h"
#include "ptx.h"

namespace qk::cuda {

// kSize rows of kStep bytes of k, 16 bytes at a time; kThreads threads. place(row, chunk) is where a chunk belongs.
template <int kSize, int kStep, int kThreads>
struct RegisterLoader {
  static constexpr int kChunks = kStep / 16, kEach = kSize * kChunks / kThreads;
  static_assert(kSize * kChunks % kThreads == 0, "the same for every thread");
  const uint8_t* from[kEach];
  int left[kEach];  // bytes of k from the chunk on; far below 0 in rows that are not there
  Words4 words[kEach];

  // kByRow: neighbouring threads take neighbouring rows, not neighbouring chunks.
  template <bool kByRow>
  QK_DEVICE static void place(int i, int& row, int& chunk) {
    const int at = ptx::thread() % kThreads + i * kThreads;
    row = kByRow ? at % kSize : at / kChunks;
    chunk = kByRow ? at / kSize : at % kChunks;
  }

  template <bool kByRow>
  QK_DEVICE void begin(const uint8_t* data, int64_t pitch, int64_t first_row, int64_t rows, int64_t first_k,
                       int64_t last_k) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      int row, chunk;
      place<kByRow>(i, row, chunk);
      const bool there = first_row + row < rows;
      left[i] = there ? int(last_k - first_k) - chunk * 16 : -(1 << 30);
      from[i] = data + (there ? (first_row + row) * pitch + first_k + chunk * 16 : 0);
    }
  }
  // Into registers; bytes beyond k are zeros, and not read.
  QK_DEVICE void fetch() {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      if (left[i] >= 16) words[i] = ptx::load(reinterpret_cast<const Words4*>(from[i]));
      else words[i] = tail(from[i], left[i]);
      from[i] += kStep;
      left[i] -= kStep;
    }
  }
  QK_DEVICE static Words4 tail(const uint8_t* from, int left) {
    Words4 result = {{0, 0, 0, 0}};
    QK_UNROLL
    for (int b = 0; b < 16; ++b)
      if (b < left) result.x[b / 4] |= uint32_t(ptx::load(from + b)) << b % 4 * 8;
    return result;
  }
};

struct Part {  // of k, of one split
  int64_t first, last;
  int steps;
};

QK_DEVICE Part part_of(const Gemm& g, int split, int step) {
  const int steps = int((g.k + step - 1) / step), part = (steps + g.splits - 1) / g.splits;
  const int64_t first = int64_t(split) * part * step, end = first + part * step, last = end < g.k ? end : g.k;
  return {first, last, last > first ? int((last - first + step - 1) / step) : 0};
}

}  // namespace qk::cuda
