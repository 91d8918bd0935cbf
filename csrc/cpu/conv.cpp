// Implicit GEMM. A task owns some output pixels and some panels of filters. It copies the windows of a band of pixels
// side by side into scratch, as rows of A, and multiplies the band while it is in the cache: A is never materialised.
// Windows that leave the image read its zero point, so that every row has the same corrections.
//
// A 1×1 convolution without strides is a product as it stands: its A is the image.
#define QK_ISA conv_baseline
#include "conv.h"

#include <string.h>

#include <atomic>

#include "../epilogue_columns.h"
#include "environment.h"
#include "features.h"
#include "gather.h"
#include "plan.h"
#include "threads.h"

namespace qk {
namespace x86_avx512bw_gather { extern const Gather gather; }
namespace {

constexpr double kOutputUs = 1.5e-4;  // a sum that the epilogue writes: most of the time where there are few channels

ConvMatrix matrix_of(const ConvJob& job, idx index) {
  const ConvShape& s = job.shape;
  ConvMatrix m;
  m.channels = s.channels / job.matrices, m.filters = s.filters / job.matrices;
  m.first_channel = index * m.channels, m.first_filter = index * m.filters;
  m.k = s.kernel[0] * s.kernel[1] * s.kernel[2] * m.channels, m.k_whole = padded(m.k, kPackedK);
  return m;
}

Gather gather_of(const KernelRow& row) {
#ifdef QK_HAVE_X86_AVX512BW_GATHER  // all of these instruction sets have its own
  if (strstr(row.isa, "avx512") || strcmp(row.isa, "x86_amx") == 0) return x86_avx512bw_gather::gather;
#endif
  return conv_baseline::gather_pixels<16>;
}

bool image_is_a(const ConvJob& job) {
  const ConvShape& s = job.shape;
  idx whole = job.x_step[3];
  for (int axis = 2; axis >= 0; --axis) {
    if (s.kernel[axis] != 1 || s.stride[axis] != 1 || s.before[axis] != 0 || s.out[axis] != s.size[axis]) return false;
    if (axis < 2 && s.size[axis] > 1 && job.x_step[axis + 1] != whole) return false;
    whole *= s.size[axis];
  }
  return s.batch == 1 || job.x_step[0] == whole;
}

struct Context {
  const KernelRow& row;
  const ConvJob& job;
  Epilogue folded;  // the zero point of the image in its bias
  Gather gather;
  int in_m, in_n;
  bool direct;
  std::atomic<bool> failed{false};
};

Range part(idx size, idx tile, int parts, int index) {
  const idx tiles = ceil_div(size, tile);
  return {min_of(tiles * index / parts * tile, size), min_of(tiles * (index + 1) / parts * tile, size)};
}

void band(Context& c, const ConvMatrix& m, idx index, Range pixels, Range n) {
  const ConvJob& job = c.job;
  Gemm g = {};
  g.m = pixels.end - pixels.begin, g.n = m.filters;
  g.a_col = 1;
  g.w = job.w + index * padded(m.filters, kPanel) * m.k_whole, g.w_panel = m.k_whole * kPanel;
  g.w_sums = job.w_sums + index * padded(m.filters, kPanel);
  const Epilogue e = epilogue_of_columns(epilogue_from(c.folded, pixels.begin), m.first_filter);
  g.epilogue = &e;
  g.w_zero = job.w_zero ? job.w_zero + m.first_filter : nullptr;
  g.l1_bytes = job.l1_bytes, g.l2_bytes = job.l2_bytes;
  if (c.direct) {
    g.k = m.k, g.a = job.x + m.first_channel + pixels.begin * job.x_step[3], g.a_row = job.x_step[3];
  } else {
    g.k = m.k_whole;  // what is behind K reads zero points, and meets zero weights
    g.a_row = m.k_whole % 2048 ? m.k_whole : m.k_whole + 64;
    uint8_t* const a = static_cast<uint8_t*>(thread_scratch(kImageScratch, size_t(g.m * g.a_row)));
    if (!a) {
      c.failed = true;
      return;
    }
    c.gather(job, m, pixels, a, g.a_row);
    g.a = a;
  }
  if (void* scratch = thread_scratch(kBlockScratch, c.row.scratch_bytes(g))) c.row.block(g, {0, g.m}, n, scratch);
  else c.failed = true;
}

void task(void* context, int index) {
  const FloatEnvironment exact;  // of the epilogue
  Context& c = *static_cast<Context*>(context);
  const ConvJob& job = c.job;
  const ConvShape& s = job.shape;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const ConvMatrix first = matrix_of(job, 0);
  const Range mine = part(pixels, c.row.mr, c.in_m, index / c.in_n);
  const Range n = part(first.filters, c.row.nr, c.in_n, index % c.in_n);
  if (mine.begin == mine.end || n.begin == n.end) return;
  // Gathered rows wait for their turn in L2: a sixteenth of it (32 KiB cost 20 % at 3×3 64@56, in calls; 512 KiB gain
  // nothing). Weights that are not in L2 are passed once for each band, so that it is longer then (16 % at 3×3 512@7).
  const bool streams = padded(first.filters, kPanel) * first.k_whole > job.l2_bytes * 5 / 8;
  idx rows = max_of(job.l2_bytes / (streams ? 4 : 16) / first.k_whole / c.row.mr, 1) * c.row.mr;
  if (c.direct) rows = mine.end - mine.begin;
  rows = min_of(rows, mine.end - mine.begin);
  for (idx at = mine.begin; at < mine.end;) {
    const idx end = min_of(at + rows, mine.end);
    for (idx i = 0; i < job.matrices; ++i) band(c, matrix_of(job, i), i, {at, end}, n);
    at = end;
  }
}

}  // namespace

namespace {

// −za · Σ(w − zw) into the bias, mod 2³²: the image has one zero point, and edges read it. room: a sum a filter.
void fold_zero(const ConvJob& job, idx k, Epilogue& e, int32_t* room) {
  const idx filters = job.shape.filters / job.matrices, columns = padded(filters, kPanel);
  for (idx j = 0; j < job.shape.filters; ++j) {
    const uint32_t of_weights = uint32_t(job.w_sums[j / filters * columns + j % filters]) -
                                (job.w_zero ? uint32_t(k) * uint32_t(job.w_zero[j]) : 0u);
    room[j] = int32_t((e.bias ? uint32_t(e.bias[j]) : 0u) - uint32_t(job.x_zero) * of_weights);
  }
  e.bias = room;
}

// The kernel without windows, if the row's instruction set has one that takes this.
const DirectRow* direct_of(const KernelRow& row, const ConvJob& job) {
  const DirectList list = direct_rows();
  for (int i = 0; i < list.count; ++i) {
    const DirectRow& one = list.rows[i];
    if (strcmp(one.isa, row.isa) == 0 && one.a_signed == row.a_signed && one.w_signed == row.w_signed &&
        cpu_runs(one.needs) && one.takes(job))
      return &one;
  }
  return nullptr;
}

// Output lines of all images on threads, in steps of `tile`: what a DepthwiseRow and a DirectRow have in common.
struct LinesContext {
  size_t (*scratch_bytes)(const ConvJob&);
  void (*block)(const ConvJob&, Range lines, void* scratch);
  const ConvJob& job;
  idx tile;
  int tasks;
  std::atomic<bool> failed{false};
};

void lines_task(void* context, int index) {
  const FloatEnvironment exact;  // of the epilogue
  LinesContext& c = *static_cast<LinesContext*>(context);
  const Range mine = part(c.job.shape.batch * c.job.shape.out[1], c.tile, c.tasks, index);
  if (mine.begin == mine.end) return;
  if (void* scratch = thread_scratch(kBlockScratch, c.scratch_bytes(c.job))) c.block(c.job, mine, scratch);
  else c.failed = true;
}

template <class Row>
bool run_lines(const Row& row, const ConvJob& job, idx tile, int tasks) {
  LinesContext c{row.scratch_bytes, row.block, job, tile, tasks, {false}};
  parallel(tasks, lines_task, &c);
  trim_thread_scratch();
  return !c.failed;
}

}  // namespace

bool run_conv(const KernelRow& row, const ConvJob& job, int threads, bool forced) {
  const ConvShape& s = job.shape;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const ConvMatrix m = matrix_of(job, 0);
  const double us =
      estimated_us(row, pixels, m.filters, m.k) * double(job.matrices) + kOutputUs * double(pixels * s.filters);
  const int tasks = forced ? threads : threads_for(us, threads);
  Context c{row, job, *job.epilogue, gather_of(row), 1, 1, image_is_a(job), {false}};
  if (job.x_zero) {
    int32_t* const room = static_cast<int32_t*>(thread_scratch(kZeroScratch, size_t(s.filters) * 4));
    if (!room) return false;
    fold_zero(job, c.direct ? m.k : m.k_whole, c.folded, room);
  }
  ConvJob folded = job;
  folded.epilogue = &c.folded;
  if (const DirectRow* direct = direct_of(row, folded)) {
    const double sums = double(pixels * s.filters);
    const double us = 2e-3 * sums * double(m.k / m.channels * (s.channels / s.groups)) / direct->gops + kOutputUs * sums;
    return run_lines(*direct, folded, 1, forced ? threads : threads_for(us, threads));
  }
  // The grid that leaves the largest block smallest; ties go to rows, whose windows are gathered once.
  const idx m_tiles = ceil_div(pixels, row.mr), n_tiles = ceil_div(m.filters, row.nr);
  idx best = m_tiles * n_tiles;
  for (int in_n = 1; in_n <= (job.matrices > 1 ? 1 : tasks); ++in_n) {
    const int in_m = tasks / in_n;
    const idx size = ceil_div(m_tiles, in_m) * ceil_div(n_tiles, in_n);
    if (size < best) best = size, c.in_m = in_m, c.in_n = in_n;
  }
  parallel(c.in_m * c.in_n, task, &c);
  trim_thread_scratch();
  return !c.failed;
}

bool run_depthwise(const DepthwiseRow& row, const ConvJob& job, int threads, bool forced) {
  const ConvShape& s = job.shape;
  const double taps = double(s.kernel[1] * s.kernel[2]), outputs = double(s.batch * s.out[1] * s.out[2] * s.channels);
  const int tasks = forced ? threads : threads_for(2e-3 * taps * outputs / row.gops, threads);
  return run_lines(row, job, ceil_div(s.kernel[1], kGroup) * kGroup - s.kernel[1] + 1,
                   tasks);  // rows of one interleaving
}

}  // namespace qk
