// Experts one after the other form one line of work, their estimated time; each thread takes an adjacent share of it. So a
// share's end cuts an expert between columns, an expert's weights are read once, by one thread or its neighbours in part,
// and no thread waits at the end of an expert. A small expert is not worth waking threads; all of them together are.
#include "experts.h"

#include "../epilogue.h"
#include "environment.h"
#include "linear.h"
#include "threads.h"

#include <atomic>

namespace qk {
namespace {

struct Call {
  const Expert* experts;
  idx count, n, k;
  const float* x;        // of rows from `first`, as they are; or
  const uint8_t* codes;  // those rows quantized
  idx first, rows;       // of x: what is in work
  const Epilogue* epilogue;
  int threads, tasks;
  bool forced;
  double total;
  std::atomic<bool> failed{false};
};

Range rows_of(const Call& c, const Expert& one) {
  const idx begin = max_of(one.first, c.first), end = min_of(one.first + one.rows, c.first + c.rows);
  return {begin, max_of(begin, end)};
}

double us_of(const Call& c, const Expert& one, idx rows) {
  if (rows == 0) return 0;
  return one.row ? estimated_us(*one.row, rows, c.n, c.k) : int4_us(*one.low, rows, c.n, c.k);
}

// Rows of one expert × some columns.
bool multiply(const Call& c, const Expert& one, Range rows, Range columns) {
  static const float kOne = 1;
  const idx i = rows.begin - c.first, m = rows.end - rows.begin;
  Epilogue e = epilogue_from(*c.epilogue, i);
  e.w_scale = one.w_scale, e.float_bias = one.bias;
  if (one.row) {
    Gemm g = one.bytes;
    g.m = m, g.a = c.codes + i * c.k, g.a_row = c.k, g.a_col = 1, g.epilogue = &e;
    void* const scratch = thread_scratch(kBlockScratch, one.row->scratch_bytes(g));
    if (scratch) one.row->block(g, {0, m}, columns, scratch);
    return scratch;
  }
  Int4 g = one.groups;
  g.m = m, g.epilogue = &e, e.float_sums = g.scales != nullptr;
  if (one.low->of_floats) {
    g.x = c.x + i * c.k;
    e.a_scale = &kOne, e.a_scale_step = 0;
  } else {
    g.a = c.codes + i * c.k, g.a_row = c.k, g.a_col = 1;
  }
  void* const scratch = thread_scratch(kBlockScratch, one.low->scratch_bytes(g));
  if (scratch) one.low->block(g, {0, m}, columns, scratch);
  return scratch;
}

// The columns of an expert that lie before a point of the line, in whole tiles.
idx columns_before(const Call& c, const Expert& one, double begin, double us, double point) {
  const idx nr = one.row ? one.row->nr : one.low->nr, tiles = ceil_div(c.n, nr);
  if (point >= begin + us) return c.n;
  return point <= begin ? 0 : min_of(idx(double(tiles) * (point - begin) / us) * nr, c.n);
}

void share(void* context, int index) {
  Call& c = *static_cast<Call*>(context);
  const FloatEnvironment exact;
  const double from = c.total * index / c.tasks,
               to = index + 1 < c.tasks ? c.total * (index + 1) / c.tasks : 2 * c.total;
  double at = 0;
  for (idx e = 0; e < c.count && at < to; ++e) {
    const Expert& one = c.experts[e];
    const Range rows = rows_of(c, one);
    const double us = us_of(c, one, rows.end - rows.begin);
    if (us > 0) {
      const Range columns = {columns_before(c, one, at, us, from), columns_before(c, one, at, us, to)};
      if (columns.begin < columns.end && !multiply(c, one, rows, columns)) c.failed = true;
    }
    at += us;
  }
}

bool in_shares(Call& c) {
  c.total = 0;
  for (idx e = 0; e < c.count; ++e) {
    const Range rows = rows_of(c, c.experts[e]);
    c.total += us_of(c, c.experts[e], rows.end - rows.begin);
  }
  c.tasks = c.forced ? c.threads : threads_for(c.total, c.threads);
  parallel(c.tasks, share, &c);
  return !c.failed;
}

bool multiply_rows(void* context, const uint8_t* codes, idx rows, const Epilogue& e) {
  Call& c = *static_cast<Call*>(context);
  c.codes = codes, c.rows = rows, c.epilogue = &e;
  const bool good = in_shares(c);
  c.first += rows;
  return good;
}

}  // namespace

bool run_experts(const Expert* experts, idx count, idx m, idx n, idx k, const Epilogue& e, const float* x, int threads,
                 bool forced) {
  bool floats = false;
  for (idx i = 0; i < count; ++i) floats |= experts[i].low && experts[i].low->of_floats;
  Call c{experts, count, n, k, x, nullptr, 0, m, &e, threads, 1, forced, 0, {false}};
  const bool good = floats ? in_shares(c) : in_quantized_rows(x, m, k, e, threads, forced, multiply_rows, &c);
  trim_thread_scratch();
  return good;
}

}  // namespace qk
