// Splits a job once, by rows where there are enough of them, else by columns; a scale belongs to one thread. One range
// that several threads share (dynamic_quantize per tensor) is looked at by all of them first.
#include "elements.h"

#include "environment.h"
#include "rows.h"
#include "threads.h"

namespace qk {
namespace {

constexpr double kBytesPerNs = 10;     // of memory, one core: the cost of what no cache holds
constexpr idx kStreamBytes = 8 << 20;  // of output: larger ones are written past the caches
// … in runs of one scale that are long. A run's ends share cache lines with its neighbours and are stored as usual, and
// each such store waits for its line: 7.1 ms for rows of 1 KiB where one run of 16 MiB took 5.5.
constexpr idx kStreamRun = 64 << 10;
constexpr idx kStep = 64;  // elements of a column split: a cache line of codes
constexpr int kMaxParts = 64;

struct Grid {
  idx rows, columns;  // of one part
  idx in_columns;     // parts
  int parts;
};

// Parts of whole steps: `step` columns at least.
Grid split(const Elementwise& job, idx step, int threads) {
  if (job.rows >= threads || job.inner < 2 * step) {
    const idx rows = ceil_div(job.rows, threads);
    return {rows, job.inner, 1, int(ceil_div(job.rows, rows))};
  }
  const idx in_rows = job.rows, in_columns = max_of(threads / in_rows, 1);
  const idx columns = padded(ceil_div(job.inner, in_columns), step), count = ceil_div(job.inner, columns);
  return {1, columns, count, int(in_rows * count)};
}

struct Context {
  const ElementwiseRow& row;
  const Elementwise& job;
  Grid grid;
  Extent extents[kMaxParts], whole;
  int32_t sums[kMaxParts];
};

Range part(idx size, idx step, idx index) { return {min_of(step * index, size), min_of(step * (index + 1), size)}; }

void block_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;
  c.row.block(c.job, part(c.job.rows, c.grid.rows, index / c.grid.in_columns),
              part(c.job.inner, c.grid.columns, index % c.grid.in_columns));
}

void extent_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;
  c.extents[index] = c.row.extent(c.job, part(c.job.inner, c.grid.columns, index));
}

void codes_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;
  c.sums[index] = c.row.codes(c.job, part(c.job.inner, c.grid.columns, index), c.whole);
}

// One range, several threads.
void run_shared(Context& c) {
  parallel(c.grid.parts, extent_task, &c);
  c.whole = c.extents[0];
  for (int i = 1; i < c.grid.parts; ++i) {
    const Extent& x = c.extents[i];
    if (x.low < c.whole.low) c.whole.low = x.low;
    if (x.high > c.whole.high) c.whole.high = x.high;
    c.whole.special |= x.special;
  }
  parallel(c.grid.parts, codes_task, &c);
  uint32_t sum = 0;
  for (int i = 0; i < c.grid.parts; ++i) sum += uint32_t(c.sums[i]);
  const Elementwise& job = c.job;
  if (job.sums) job.sums[0] = int32_t(sum);
  const FloatEnvironment exact;
  const bool is_signed = job.low < 0;
  const Asymmetric found = asymmetric(c.whole.low, c.whole.high, job.high);
  job.found_scale[0] = is_signed ? symmetric(c.whole.high, job.high).scale : found.scale;
  job.found_zero[0] = is_signed ? 0 : found.zero;
}

}  // namespace

namespace {

struct Joined {
  const ElementwiseRow* rows[256];
  int count = 0;
  void add(const ElementwiseList& list) {
    for (int i = 0; i < list.count; ++i) rows[count++] = &list.rows[i];
  }
  Joined() {
#ifdef QK_HAVE_X86_AVX512BW
    add(x86_avx512bw::elementwise_list);
#endif
#ifdef QK_HAVE_X86_AVX2
    add(x86_avx2::elementwise_list);
#endif
    add(portable::elementwise_list);
  }
};

const Joined& joined() {
  static const Joined once;
  return once;
}

}  // namespace

int elementwise_count() { return joined().count; }
const ElementwiseRow& elementwise_row(int index) { return *joined().rows[index]; }

void run(const ElementwiseRow& row, Elementwise job, int threads, bool forced) {
  const bool one_scale = job.at.rows == 1 && job.at.columns == 1, dynamic = row.extent != nullptr;
  if (one_scale && !dynamic && !row.whole_rows) {  // one long row
    job.inner *= job.rows;
    job.rows = 1;
    job.at.group = job.inner;
  }
  const double elements = double(job.rows) * double(job.inner), bytes = elements * (row.in_bytes + row.out_bytes);
  const idx run = job.at.columns == 1 ? job.inner : job.at.group;
  // The system clears a fresh page through the caches, and a store past them waits until what was cleared has left
  // them: 64 MiB of float32 in 21 ms, where ordinary stores take 9.
  job.stream = !job.fresh && elements * row.out_bytes >= kStreamBytes && run * row.out_bytes >= kStreamRun &&
               !job.sums;  // which read the codes again
  const double us = 1e-3 * (elements * row.ns + bytes / kBytesPerNs);
  const int count = forced ? threads : threads_for(us, threads);
  const bool shared = dynamic && job.rows == 1 && job.at.group >= job.inner;
  const bool groups = dynamic || (job.at.columns > 1 && job.at.group > 1);
  const idx step = row.whole_rows ? job.inner : groups && !shared ? padded(kStep, job.at.group) : kStep;
  Context c{row, job, split(job, step, count < kMaxParts ? count : kMaxParts), {}, {}, {}};
  if (shared && c.grid.parts > 1) run_shared(c);
  else parallel(c.grid.parts, block_task, &c);
}

}  // namespace qk
