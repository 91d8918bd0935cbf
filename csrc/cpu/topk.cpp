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

#include <string.h>

#include <algorithm>
#include <atomic>

#include "features.h"
#include "pack.h"
#include "threads.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace qk {
namespace {

constexpr idx kTileBytes = 32 << 10, kLeastStrip = 64, kMostStrip = 512;
constexpr idx kQueries = 256;        // at a time: the corpus is read again for more
constexpr double kMinThreadUs = 20;  // work that is worth waking a thread for
constexpr double kBytesUs = 1e4;     // of the corpus, read by one core in a microsecond

struct Candidate {
  int64_t score, index;
};

// Heaps have the worst in front: of equal scores the later row.
inline bool better(const Candidate& x, const Candidate& y) {
  return x.score != y.score ? x.score > y.score : x.index < y.index;
}

template <bool Signed>
int64_t squares(const uint8_t* c, idx n, idx step) {
  int64_t sum = 0;
  for (idx i = 0; i < n; ++i) {
    const int v = Signed ? int(int8_t(c[i * step])) : int(c[i * step]);
    sum += v * v;
  }
  return sum;
}

#if defined(__SSE2__)
// 65 025 · 2 fits 32 bits 16 000 times, and a lane sees an eighth of n.
template <bool Signed>
__attribute__((target("avx2"))) int64_t squares_avx2(const uint8_t* c, idx n, idx step) {
  if (step != 1) return squares<Signed>(c, n, step);
  __m256i sum = _mm256_setzero_si256();
  idx i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(c + i));
    const __m256i wide = Signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, wide));
  }
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
  int64_t total = squares<Signed>(c + i, n - i, 1);
  for (const uint32_t lane : lanes) total += lane;
  return total;
}
#else
template <bool Signed>
int64_t squares_avx2(const uint8_t* c, idx n, idx step) {
  return squares<Signed>(c, n, step);
}
#endif

using Squares = int64_t (*)(const uint8_t*, idx, idx);

Squares squares_of(bool is_signed) {
  static const bool avx2 = cpu_runs("x86_avx2");
  if (avx2) return is_signed ? squares_avx2<true> : squares_avx2<false>;
  return is_signed ? squares<true> : squares<false>;
}

struct Context {
  const KernelRow& row;
  const TopK& job;
  idx first, columns, whole;  // queries in work, and padded to panels
  Gemm gemm;
  int tasks;
  idx strip;
  Candidate* heaps;  // [tasks][columns][k]
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
      if (c_.job.distance) {
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
    c.row.block(g, {0, g.m}, {0, c.whole}, scratch + tile);
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
  if (job.distance) {
    const uint8_t* const query = job.queries + (c.first + j) * job.queries_row;
    own = (c.row.w_signed ? squares<true> : squares<false>)(query, job.dims, job.queries_col);
  }
  for (idx i = 0; i < k; ++i) {
    job.scores[(c.first + j) * k + i] = int32_t(job.distance ? own - best[i].score : best[i].score);
    job.indices[(c.first + j) * k + i] = best[i].index;
  }
}

bool search(const KernelRow& row, const TopK& job, idx first, int threads, bool forced) {
  Context c{row, job, first, min_of(kQueries, job.columns - first), 0, {}, 1, 0, nullptr, {false}};
  c.whole = padded(c.columns, kPanel);
  const double bytes = double(job.rows) * double(job.dims);
  const double most = (estimated_us(row, job.rows, c.whole, job.dims) + bytes / kBytesUs) / kMinThreadUs;
  c.tasks = forced ? threads : most < 2 ? 1 : most < threads ? int(most) : threads;
  c.strip = padded(min_of(max_of(kTileBytes / (c.whole * 4), kLeastStrip), kMostStrip), row.mr);
  const idx k_whole = padded(job.dims, row.k_step), heaps = c.tasks * c.columns * job.k * idx(sizeof(Candidate));
  const idx weights = padded(c.whole * k_whole, 64), sums = c.whole * 4;
  uint8_t* const scratch =
      static_cast<uint8_t*>(thread_scratch(kWeightScratch, size_t(weights + padded(sums, 64) + heaps)));
  if (!scratch) return false;
  Gemm& g = c.gemm;
  g.m = c.strip, g.n = c.whole, g.k = job.dims;
  g.a_row = job.corpus_row, g.a_col = job.corpus_col;
  g.w = scratch, g.w_panel = k_whole * kPanel;
  g.w_sums = reinterpret_cast<int32_t*>(scratch + weights);
  g.out_row = c.whole;
  g.l1_bytes = cache_bytes(1), g.l2_bytes = cache_bytes(2);
  c.heaps = reinterpret_cast<Candidate*>(scratch + weights + padded(sums, 64));
  pack_panels(
      {job.queries + first * job.queries_row, job.dims, c.columns, job.queries_col, job.queries_row, row.w_signed},
      row.k_step, {0, c.whole / kPanel}, scratch, reinterpret_cast<int32_t*>(scratch + weights));
  parallel(c.tasks, search_task, &c);
  if (c.failed) return false;
  for (idx j = 0; j < c.columns; ++j) deliver(c, j);
  return true;
}

}  // namespace

bool run_topk(const KernelRow& row, const TopK& job, int threads, bool forced) {
  bool good = true;
  for (idx first = 0; first < job.columns && good; first += kQueries) good = search(row, job, first, threads, forced);
  trim_thread_scratch();
  return good;
}

}  // namespace qk
