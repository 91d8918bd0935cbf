// Splits a job once: products of a batch over the threads when there are enough of them, else the output of each
// product into a grid of blocks. A block belongs to one thread, K is never split: results do not depend on the grid.
#include "plan.h"

#include <atomic>

#include "environment.h"
#include "features.h"
#include "pack.h"
#include "threads.h"

namespace qk {
namespace {

constexpr idx kPackLateRows = 64;  // at most so many rows: packing A again for each few panels costs less than a
                                   // second pass over the packed weights
constexpr idx kLateColumns = 256, kLateK = 512;  // of a block of weights packed late: 128 KiB

struct Grid {
  int m, n;
};

// Which grid of `threads` blocks leaves the largest block smallest? Ties go to columns: each thread streams its own
// weight panels.
Grid split(const KernelRow& row, idx m, idx n, int threads) {
  const idx m_tiles = ceil_div(m, row.mr), n_tiles = ceil_div(n, row.nr);
  Grid best{1, 1};
  idx best_size = m_tiles * n_tiles;
  for (int in_m = 1; in_m <= threads; ++in_m) {
    const int in_n = threads / in_m;
    const idx size = ceil_div(m_tiles, in_m) * ceil_div(n_tiles, in_n);
    if (size < best_size) best = {in_m, in_n}, best_size = size;
  }
  return best;
}

Range part(idx size, idx tile, int parts, int index) {
  const idx tiles = ceil_div(size, tile);
  return {min_of(tiles * index / parts * tile, size), min_of(tiles * (index + 1) / parts * tile, size)};
}

struct Context {
  const KernelRow& row;
  const Job& job;
  int tasks;
  Grid grid;
  Gemm gemm;           // of the product in work
  PlainWeights plain;  // likewise
  bool pack_late, needs_sums;
  uint8_t* packed;
  int32_t* sums;
  std::atomic<bool> failed{false};
};

void pack_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  pack_panels(c.plain, c.row.k_step, part(ceil_div(c.plain.n, kPanel), 1, c.tasks, index), c.packed,
              c.needs_sums ? c.sums : nullptr);
}

// Few rows: plain weights are packed a block at a time, just before it is multiplied, and the block never leaves L2.
// Rows of the plain matrix are read 256 bytes at a time and blocks are short in k, for the sake of the TLB.
void late_block(Context& c, Range m, Range n, void* scratch) {
  const idx k_block = min_of(padded(c.gemm.k, c.row.k_step), kLateK), panel_bytes = k_block * kPanel;
  uint8_t* const packed = static_cast<uint8_t*>(thread_scratch(kLateScratch, kLateColumns * (k_block + 4)));
  if (!packed) {
    c.failed = true;
    return;
  }
  int32_t* const sums = reinterpret_cast<int32_t*>(packed + kLateColumns / kPanel * panel_bytes);
  for (idx k = 0; k < c.gemm.k; k += k_block)
    for (idx j = n.begin; j < n.end; j += kLateColumns) {
      Gemm g = c.gemm;
      g.k = min_of(k_block, g.k - k), g.n = min_of(kLateColumns, n.end - j);
      g.a += k * g.a_col;
      g.w = packed, g.w_sums = sums, g.w_panel = padded(g.k, c.row.k_step) * kPanel;
      g.out += j, g.add = k > 0;
      if (g.w_zero) g.w_zero += j;
      const PlainWeights& w = c.plain;
      pack_panels({w.data + k * w.row + j * w.col, g.k, g.n, w.row, w.col, w.is_signed}, c.row.k_step,
                  {0, ceil_div(g.n, kPanel)}, packed, c.needs_sums ? sums : nullptr);
      c.row.block(g, m, {0, g.n}, scratch);
    }
}

void block_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;  // of an epilogue
  const Range m = part(c.gemm.m, c.row.mr, c.grid.m, index / c.grid.n);
  const Range n = part(c.gemm.n, c.row.nr, c.grid.n, index % c.grid.n);
  if (m.begin == m.end || n.begin == n.end) return;
  if (void* scratch = thread_scratch(kBlockScratch, c.row.scratch_bytes(c.gemm)))
    c.pack_late ? late_block(c, m, n, scratch) : c.row.block(c.gemm, m, n, scratch);
  else c.failed = true;
}

const int32_t* gather(const int32_t* values, idx step, idx count, int32_t*& room) {
  if (!values) return nullptr;
  int32_t* const to = room;
  for (idx i = 0; i < count; ++i)
    to[i] = *reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(values) + i * step);
  room += count;
  return to;
}

template <class T>
T* moved(T* p, idx bytes) {
  return p ? reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)) : p;
}

// Product number `index` of the batch, its weights packed by `tasks` threads, its zero points gathered.
bool prepare(Context& c, const KernelRow& row, const Job& job, idx index) {
  Gemm& g = c.gemm = job.one;
  PlainWeights& w = c.plain = {job.plain, g.k, g.n, job.plain_row, job.plain_col, row.w_signed};
  for (int d = job.dims - 1; d >= 0; --d) {
    const idx i = index % job.shape[d];
    index /= job.shape[d];
    g.a = moved(g.a, i * job.a[d]);
    w.data = moved(w.data, i * job.w[d]);
    g.out = moved(g.out, i * job.out[d]);
    g.a_zero = moved(g.a_zero, i * job.a_zero[d]);
    g.w_zero = moved(g.w_zero, i * job.w_zero[d]);
  }
  const idx panel_bytes = padded(g.k, row.k_step) * kPanel, panels = ceil_div(g.n, kPanel);
  c.pack_late = job.plain && g.m <= kPackLateRows;
  c.needs_sums = row.needs_sums || g.a_zero;
  const bool pack_now = job.plain && !c.pack_late;
  const idx weights = pack_now ? panels * panel_bytes : 0, sums = pack_now ? panels * kPanel * 4 : 0;
  const idx zeros = (g.a_zero ? g.m : 0) + (g.w_zero ? g.n : 0);
  uint8_t* scratch = nullptr;
  if (weights + sums + zeros > 0) {
    scratch = static_cast<uint8_t*>(thread_scratch(kWeightScratch, size_t(weights + sums + zeros * 4)));
    if (!scratch) return false;
  }
  int32_t* room = reinterpret_cast<int32_t*>(scratch + weights + sums);
  g.a_zero = gather(g.a_zero, job.a_zero_step, g.m, room);
  g.w_zero = gather(g.w_zero, job.w_zero_step, g.n, room);
  if (!pack_now) return true;
  c.packed = scratch;
  c.sums = reinterpret_cast<int32_t*>(scratch + weights);
  parallel(c.tasks, pack_task, &c);
  g.w = c.packed;
  g.w_sums = c.sums;
  g.w_panel = panel_bytes;
  return true;
}

bool run_one(const KernelRow& row, const Job& job, idx index, int threads) {
  Context c{row,     job,     threads, split(row, job.one.m, job.one.n, threads), {}, {}, false, false,
            nullptr, nullptr, {false}};
  if (!prepare(c, row, job, index)) return false;
  parallel(c.grid.m * c.grid.n, block_task, &c);
  return !c.failed;
}

struct BatchContext {
  const KernelRow& row;
  const Job& job;
  idx count;
  int tasks;
  std::atomic<bool> failed{false};
};

void batch_task(void* context, int index) {
  BatchContext& c = *static_cast<BatchContext*>(context);
  const Range mine = part(c.count, 1, c.tasks, index);
  for (idx i = mine.begin; i < mine.end; ++i)
    if (!run_one(c.row, c.job, i, 1)) c.failed = true;
}

}  // namespace

double estimated_us(const KernelRow& row, idx m, idx n, idx k) {
  const double tiles = double(padded(m, m < row.mr ? 1 : row.mr)) * double(padded(n, row.nr));
  return row.call_us + 2e-3 * tiles * double(padded(k, row.k_step)) / row.gops;
}

bool run(const KernelRow& row, const Job& job, int threads, bool forced) {
  idx count = 1;
  for (int d = 0; d < job.dims; ++d) count *= job.shape[d];
  const double us = estimated_us(row, job.one.m, job.one.n, job.one.k);
  bool good = true;
  if (count >= threads && count > 1) {
    BatchContext c{row, job, count, forced ? threads : threads_for(us * double(count), threads)};
    parallel(c.tasks, batch_task, &c);
    good = !c.failed;
  } else {
    const int tasks = forced ? threads : threads_for(us, threads);
    for (idx i = 0; i < count; ++i) good = run_one(row, job, i, tasks) && good;
  }
  trim_thread_scratch();
  return good;
}

}  // namespace qk
