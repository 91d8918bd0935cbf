// A corpus is read once, a strip of rows at a time: its product with the packed queries lies in L1 or L2 while it is
// compared with each query's worst candidate, and is then forgotten. So no matrix of scores exists, and the corpus is
// the A of a product, read where it lies: it is nothing that would have to be packed.
//
//   strip of corpus rows × packed queries → (rows, columns) of sums → candidates: a heap for each query, the worst on top
//
// Distances are Σq² − (2Σqc − Σc²), and what is in brackets is the score that candidates are compared by.
// Rows come in order, and a row must beat the worst candidate to get in: of equals the first stays. Threads own ranges
// of rows; at the end their candidates are merged by (score, index), so that results do not depend on the ranges.
#include "topk.h"

#include <algorithm>
#include <atomic>

#include "features.h"
#include "pack.h"
#include "threads.h"
#include "topk_few.h"

namespace qk {
namespace {

constexpr idx kTileBytes = 32 << 10, kLeastStrip = 64, kMostStrip = 512;
constexpr idx kFewQueries = 4;    // at most so many: dot products (topk_few.h), which read faster than products do
constexpr idx kQueries = 256;     // at a time: the corpus is read again for more
constexpr double kBytesUs = 1e4;  // of the corpus, read by one core in a microsecond

struct Candidate {
  int64_t score, index;
};

// Heaps have the worst in front: of equal scores the later row.
inline bool better(const Candidate& x, const Candidate& y) {
  return x.score != y.score ? x.score > y.score : x.index < y.index;
}

struct Context {
  const KernelRow& row;
  const TopK& job;
  idx first, columns, whole;  // queries in work, and what a row of sums has
  Gemm gemm;
  int tasks;
  idx strip;
  Candidate* heaps;     // [tasks][columns][k]
  Dots dots;            // of few queries, else null
  const int16_t* wide;  // these queries
  std::atomic<bool> failed{false};
};

struct Thresholds {  // of one thread: what each query's next candidate has to exceed
  alignas(64) int32_t values[kQueries];
};

// A row whose score exceeds some threshold, if any: a loop that the compiler vectorizes.
inline bool any_above(const int32_t* scores, const int32_t* thresholds, idx n) {
  int32_t above = 0;
  for (idx j = 0; j < n; ++j) above |= scores[j] > thresholds[j] ? -1 : 0;
  return above != 0;
}

struct Heap {
  Candidate* at;
  idx k, filled;
};

void offer(Heap& heap, int64_t score, int64_t index) {
  if (heap.filled < heap.k) {
    heap.at[heap.filled++] = {score, index};
    std::push_heap(heap.at, heap.at + heap.filled, better);
    return;
  }
  std::pop_heap(heap.at, heap.at + heap.k, better);
  heap.at[heap.k - 1] = {score, index};
  std::push_heap(heap.at, heap.at + heap.k, better);
}

class Search {  // of one thread
 public:
  Search(Context& c, int index)
      : c_(c), heaps_(c.heaps + index * c.columns * c.job.k), squares_(squares_of(c.row.a_signed)) {
    for (idx j = 0; j < c.whole; ++j) {
      filled_[j] = 0;
      thresholds_.values[j] = j < c.columns ? INT32_MIN : INT32_MAX;
    }
  }

  void strip(idx row, idx rows, const int32_t* sums) {
    for (idx i = 0; i < rows; ++i, sums += c_.whole) {
      int32_t doubled[kQueries];
      const int32_t* scores = sums;
      if (c_.job.distance && !c_.dots) {
        const uint8_t* const from = c_.job.corpus + (row + i) * c_.job.corpus_row;
        const int32_t less = int32_t(squares_(from, c_.job.dims, c_.job.corpus_col));
        for (idx j = 0; j < c_.whole; ++j) doubled[j] = int32_t(2u * uint32_t(sums[j]) - uint32_t(less));
        scores = doubled;
      }
      if (full_ == c_.columns && !any_above(scores, thresholds_.values, c_.whole)) continue;
      for (idx j = 0; j < c_.columns; ++j)
        if (filled_[j] < c_.job.k || scores[j] > thresholds_.values[j]) enter(j, scores[j], row + i);
    }
  }

  idx filled(idx j) const { return filled_[j]; }

 private:
  void enter(idx j, int32_t score, idx row) {
    Heap heap = {heaps_ + j * c_.job.k, c_.job.k, filled_[j]};
    offer(heap, score, row);
    if (heap.filled == heap.k && filled_[j] < heap.k) ++full_;
    filled_[j] = heap.filled;
    thresholds_.values[j] = heap.filled < heap.k ? INT32_MIN : int32_t(heap.at[0].score);
  }

  Context& c_;
  Candidate* const heaps_;
  const Squares squares_;
  idx filled_[kQueries], full_ = 0;
  Thresholds thresholds_;
};

Range part(const Context& c, int index) {
  const idx strips = ceil_div(c.job.rows, c.strip);
  return {min_of(strips * index / c.tasks * c.strip, c.job.rows),
          min_of(strips * (index + 1) / c.tasks * c.strip, c.job.rows)};
}

void search_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const Range mine = part(c, index);
  const idx tile = padded(c.strip * c.whole * 4, 64);
  uint8_t* const scratch =
      static_cast<uint8_t*>(thread_scratch(kBlockScratch, size_t(tile) + c.row.scratch_bytes(c.gemm)));
  if (!scratch) {
    c.failed = true;
    return;
  }
  int32_t* const sums = reinterpret_cast<int32_t*>(scratch);
  Search search(c, index);
  for (idx i = mine.begin; i < mine.end; i += c.strip) {
    Gemm g = c.gemm;
    g.m = min_of(c.strip, mine.end - i);
    g.a = c.job.corpus + i * c.job.corpus_row, g.out = sums;
    if (c.dots) c.dots(g.a, g.m, g.a_row, g.k, c.wide, sums);
    else c.row.block(g, {0, g.m}, {0, c.whole}, scratch + tile);
    search.strip(i, g.m, sums);
  }
  for (idx j = 0; j < c.columns; ++j)  // what is not filled stands behind everything
    for (idx t = search.filled(j); t < c.job.k; ++t)
      c.heaps[(index * c.columns + j) * c.job.k + t] = {INT64_MIN, INT64_MAX};
}

// The threads' candidates of query j, the best k of them in order.
void deliver(Context& c, idx j) {
  const idx k = c.job.k;
  Candidate* const best = c.heaps + j * k;
  for (int t = 1; t < c.tasks; ++t) {
    const Candidate* const more = c.heaps + (t * c.columns + j) * k;
    for (idx i = 0; i < k; ++i)
      if (better(more[i], best[0])) {
        std::pop_heap(best, best + k, better);
        best[k - 1] = more[i];
        std::push_heap(best, best + k, better);
      }
  }
  std::sort(best, best + k, better);
  int64_t own = 0;
  const TopK& job = c.job;
  if (job.distance && !c.dots) {
    const uint8_t* const query = job.queries + (c.first + j) * job.queries_row;
    own = (c.row.w_signed ? squares<true> : squares<false>)(query, job.dims, job.queries_col);
  }
  for (idx i = 0; i < k; ++i) {
    job.scores[(c.first + j) * k + i] = int32_t(job.distance ? own - best[i].score : best[i].score);
    job.indices[(c.first + j) * k + i] = best[i].index;
  }
}

// One batch of queries: everything but memory and threads.
struct Plan {
  idx columns, whole, strip;
  Dots dots;
  Gemm gemm;

  Plan(const KernelRow& row, const TopK& job, idx first)
      : columns(min_of(kQueries, job.columns - first)), whole(0), strip(0), dots(nullptr), gemm() {
    if (columns <= kFewQueries && job.corpus_col == 1) dots = dots_of(int(columns), row.a_signed, job.distance);
    whole = dots ? columns : padded(columns, kPanel);
    strip = padded(min_of(max_of(kTileBytes / (whole * 4), kLeastStrip), kMostStrip), row.mr);
    gemm.m = strip, gemm.n = whole, gemm.k = job.dims;
    gemm.a_row = job.corpus_row, gemm.a_col = job.corpus_col;
    gemm.w_panel = padded(job.dims, kPackedK) * kPanel;
    gemm.out_row = whole;
    gemm.l1_bytes = cache_bytes(1), gemm.l2_bytes = cache_bytes(2);
  }

  idx weights_bytes() const { return padded(padded(columns, kPanel) / kPanel * gemm.w_panel, 64); }
  idx sums_bytes() const { return padded(columns, kPanel) * 4; }
  size_t call_bytes(int tasks, idx k) const {
    return size_t(weights_bytes() + sums_bytes() + tasks * columns * k * idx(sizeof(Candidate)));
  }
  size_t task_bytes(const KernelRow& row) const {
    return size_t(padded(strip * whole * 4, 64)) + row.scratch_bytes(gemm);
  }
};

bool search(const KernelRow& row, const TopK& job, idx first, int threads, bool forced) {
  const Plan plan(row, job, first);
  Context c{row, job, first, plan.columns, plan.whole, plan.gemm, 1, plan.strip, nullptr, plan.dots, nullptr, {false}};
  const double bytes = double(job.rows) * double(job.dims);
  const double us = estimated_us(row, job.rows, c.whole, job.dims) + bytes / kBytesUs;
  c.tasks = forced ? threads : threads_for(us, threads);
  uint8_t* const scratch = static_cast<uint8_t*>(thread_scratch(kWeightScratch, plan.call_bytes(c.tasks, job.k)));
  if (!scratch) return false;
  int32_t* const sums = reinterpret_cast<int32_t*>(scratch + plan.weights_bytes());
  c.heaps = reinterpret_cast<Candidate*>(scratch + plan.weights_bytes() + plan.sums_bytes());
  c.gemm.w = scratch, c.gemm.w_sums = sums;
  const uint8_t* const queries = job.queries + first * job.queries_row;
  if (c.dots) {
    int16_t* const wide = reinterpret_cast<int16_t*>(scratch);  // 2 · 4 queries take less than a panel
    widen_queries(queries, c.columns, job.dims, job.queries_row, job.queries_col, row.w_signed, wide);
    c.wide = wide;
  } else {
    pack_panels({queries, job.dims, c.columns, job.queries_col, job.queries_row, row.w_signed}, kPackedK,
                {0, c.whole / kPanel}, scratch, sums);
  }
  parallel(c.tasks, search_task, &c);
  if (c.failed) return false;
  for (idx j = 0; j < c.columns; ++j) deliver(c, j);
  return true;
}

}  // namespace

TopKRoom topk_room(const KernelRow& row, const TopK& job, int tasks) {
  TopKRoom room = {0, 0};
  for (const idx first : {idx(0), (job.columns - 1) / kQueries * kQueries}) {
    const Plan plan(row, job, first);
    const size_t call = plan.call_bytes(tasks, job.k), task = plan.task_bytes(row);
    room.call = call > room.call ? call : room.call, room.task = task > room.task ? task : room.task;
  }
  return room;
}

bool run_topk(const KernelRow& row, const TopK& job, int threads, bool forced) {
  bool good = true;
  for (idx first = 0; first < job.columns && good; first += kQueries) good = search(row, job, first, threads, forced);
  trim_thread_scratch();
  return good;
}

}  // namespace qk
