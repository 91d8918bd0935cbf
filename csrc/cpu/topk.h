// Exact nearest neighbours: the best k rows of a corpus for each query, by inner product or by squared distance.
#pragma once
#include "plan.h"

namespace qk {

// corpus (rows, dims), any strides, of the row's activation type; queries (columns, dims), of its weight type.
struct TopK {
  const uint8_t* corpus;
  idx rows, dims, corpus_row, corpus_col;
  const uint8_t* queries;
  idx columns, queries_row, queries_col;
  idx k;             // ≤ rows
  bool distance;     // Σ(q − c)², the least first; else Σqc, the largest first
  int32_t* scores;   // (columns, k)
  int64_t* indices;  // likewise
};

// As `run` of plan.h.
bool run_topk(const KernelRow& row, const TopK& job, int threads, bool forced);

// The most bytes of scratch that it asks for: once, and in each of at most so many tasks.
struct TopKRoom {
  size_t call, task;
};
TopKRoom topk_room(const KernelRow& row, const TopK& job, int tasks);

}  // namespace qk
