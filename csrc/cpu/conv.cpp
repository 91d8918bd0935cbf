// Implicit GEMM. A task owns some output pixels and some panels of filters. It copies the windows of a band of pixels
// side by side into scratch, as rows of A, and multiplies the band while it is in the cache: A is never materialised.
// Windows that leave the image read its zero point, so that every row has the same corrections.
//
// A 1×1 convolution without strides is a product as it stands: its A is the image.
#include "conv.h"

#include <string.h>

#include <atomic>

#include "environment.h"
#include "plan.h"
#include "threads.h"

namespace qk {
namespace {

constexpr double kMinThreadUs = 20;    // work that is worth waking a thread for
constexpr idx kBandBytes = 128 << 10;  // gathered rows wait for their turn in L2

// n bytes, in pieces that may overlap: a call of memcpy costs more than most of these copies.
inline void copy(uint8_t* dst, const uint8_t* src, idx n) {
  if (n >= 16) {
    idx i = 0;
    for (; i + 16 <= n; i += 16) memcpy(dst + i, src + i, 16);
    if (i < n) memcpy(dst + n - 16, src + n - 16, 16);
  } else if (n >= 8) {
    uint64_t head, tail;
    memcpy(&head, src, 8), memcpy(&tail, src + n - 8, 8);
    memcpy(dst, &head, 8), memcpy(dst + n - 8, &tail, 8);
  } else {
    for (idx i = 0; i < n; ++i) dst[i] = src[i];
  }
}

struct Pixel {
  idx image, at[3];
};

inline Pixel pixel_of(const ConvShape& s, idx index) {
  Pixel p;
  for (int axis = 2; axis >= 0; --axis) p.at[axis] = index % s.out[axis], index /= s.out[axis];
  p.image = index;
  return p;
}

inline void step(const ConvShape& s, Pixel& p) {
  for (int axis = 2; axis >= 0; --axis) {
    if (++p.at[axis] < s.out[axis]) return;
    p.at[axis] = 0;
  }
  ++p.image;
}

struct Matrix {  // one of the merged groups
  idx channels, first_channel, filters, first_filter, k, k_whole;
};

Matrix matrix_of(const ConvJob& job, idx index) {
  const ConvShape& s = job.shape;
  Matrix m;
  m.channels = s.channels / job.matrices, m.filters = s.filters / job.matrices;
  m.first_channel = index * m.channels, m.first_filter = index * m.filters;
  m.k = s.kernel[0] * s.kernel[1] * s.kernel[2] * m.channels, m.k_whole = padded(m.k, kPackedK);
  return m;
}

// The taps of one row of the kernel, of one pixel: kernel width × channels bytes.
inline void gather_row(const ConvJob& job, const Matrix& m, const uint8_t* row, idx left, bool inside, uint8_t* dst) {
  const ConvShape& s = job.shape;
  const idx taps = s.kernel[2], c = m.channels;
  if (!inside) {
    memset(dst, uint8_t(job.x_zero), size_t(taps * c));
  } else if (s.dilation[2] == 1 && job.x_step[3] == c) {  // neighbours: one run
    const idx first = min_of(max_of(-left, 0), taps), last = max_of(min_of(s.size[2] - left, taps), first);
    if (first > 0) memset(dst, uint8_t(job.x_zero), size_t(first * c));
    if (last > first) copy(dst + first * c, row + (left + first) * c, (last - first) * c);
    if (taps > last) memset(dst + last * c, uint8_t(job.x_zero), size_t((taps - last) * c));
  } else {
    for (idx t = 0; t < taps; ++t, left += s.dilation[2], dst += c)
      if (left >= 0 && left < s.size[2]) copy(dst, row + left * job.x_step[3], c);
      else memset(dst, uint8_t(job.x_zero), size_t(c));
  }
}

void gather(const ConvJob& job, const Matrix& m, Range pixels, uint8_t* dst, idx dst_row) {
  const ConvShape& s = job.shape;
  Pixel p = pixel_of(s, pixels.begin);
  for (idx i = pixels.begin; i < pixels.end; ++i, dst += dst_row, step(s, p)) {
    const uint8_t* image = job.x + p.image * job.x_step[0] + m.first_channel;
    const idx front = p.at[0] * s.stride[0] - s.before[0], top = p.at[1] * s.stride[1] - s.before[1];
    const idx left = p.at[2] * s.stride[2] - s.before[2];
    uint8_t* to = dst;
    for (idx kd = 0; kd < s.kernel[0]; ++kd)
      for (idx kh = 0; kh < s.kernel[1]; ++kh, to += s.kernel[2] * m.channels) {
        const idx d = front + kd * s.dilation[0], h = top + kh * s.dilation[1];
        const bool inside = d >= 0 && d < s.size[0] && h >= 0 && h < s.size[1];
        gather_row(job, m, image + d * job.x_step[1] + h * job.x_step[2], left, inside, to);
      }
    memset(to, uint8_t(job.x_zero), size_t(m.k_whole - m.k));
  }
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
  int in_m, in_n;
  bool direct;
  std::atomic<bool> failed{false};
};

Range part(idx size, idx tile, int parts, int index) {
  const idx tiles = ceil_div(size, tile);
  return {min_of(tiles * index / parts * tile, size), min_of(tiles * (index + 1) / parts * tile, size)};
}

// That of the columns from j.
Epilogue epilogue_of_filters(Epilogue e, idx j) {
  constexpr idx kBytes[] = {4, 4, 2, 2, 1, 1, 2, 2};
  e.out = static_cast<char*>(e.out) + j * kBytes[int(e.type)];
  if (e.bias) e.bias += j;
  if (e.w_scale) e.w_scale += j;
  if (e.float_bias) e.float_bias += j;
  if (e.m) e.m += j;
  if (e.m64) e.m64 += j;
  if (e.q) e.q += j, e.e += j;
  const char* const residual = static_cast<const char*>(e.residual);
  if (residual) e.residual = residual + j * (e.residual_type == Residual::f32 ? 4 : 1);
  return e;
}

void band(Context& c, const Matrix& m, idx index, Range pixels, Range n) {
  const ConvJob& job = c.job;
  Gemm g = {};
  g.m = pixels.end - pixels.begin, g.n = m.filters;
  g.a_col = 1;
  g.w = job.w + index * padded(m.filters, kPanel) * m.k_whole, g.w_panel = m.k_whole * kPanel;
  g.w_sums = job.w_sums + index * padded(m.filters, kPanel);
  const Epilogue e = epilogue_of_filters(epilogue_from(c.folded, pixels.begin), m.first_filter);
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
    gather(job, m, pixels, a, g.a_row);
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
  const Matrix first = matrix_of(job, 0);
  const Range mine = part(pixels, c.row.mr, c.in_m, index / c.in_n);
  const Range n = part(first.filters, c.row.nr, c.in_n, index % c.in_n);
  if (mine.begin == mine.end || n.begin == n.end) return;
  idx rows = max_of(kBandBytes / first.k_whole / c.row.mr, 1) * c.row.mr;
  if (c.direct) rows = mine.end - mine.begin;
  rows = min_of(rows, mine.end - mine.begin);
  for (idx at = mine.begin; at < mine.end;) {
    const idx end = min_of(at + rows, mine.end);
    for (idx i = 0; i < job.matrices; ++i) band(c, matrix_of(job, i), i, {at, end}, n);
    at = end;
  }
}

int worth(double us, int threads) {
  const double most = us / kMinThreadUs;
  return most < 2 ? 1 : most < threads ? int(most) : threads;
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

}  // namespace

bool run_conv(const KernelRow& row, const ConvJob& job, int threads, bool forced) {
  const ConvShape& s = job.shape;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const Matrix m = matrix_of(job, 0);
  const int tasks = forced ? threads : worth(estimated_us(row, pixels, m.filters, m.k) * double(job.matrices), threads);
  Context c{row, job, *job.epilogue, 1, 1, image_is_a(job), {false}};
  if (job.x_zero) {
    int32_t* const room = static_cast<int32_t*>(thread_scratch(kZeroScratch, size_t(s.filters) * 4));
    if (!room) return false;
    fold_zero(job, c.direct ? m.k : m.k_whole, c.folded, room);
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

namespace {

struct DepthwiseContext {
  const DepthwiseRow& row;
  const ConvJob& job;
  int tasks;
  std::atomic<bool> failed{false};
};

void depthwise_task(void* context, int index) {
  const FloatEnvironment exact;  // of the epilogue
  DepthwiseContext& c = *static_cast<DepthwiseContext*>(context);
  const ConvShape& s = c.job.shape;
  const idx tile = ceil_div(s.kernel[1], kGroup) * kGroup - s.kernel[1] + 1;  // rows that share an interleaving
  const Range mine = part(s.batch * s.out[1], tile, c.tasks, index);
  if (mine.begin == mine.end) return;
  if (void* scratch = thread_scratch(kBlockScratch, c.row.scratch_bytes(c.job))) c.row.block(c.job, mine, scratch);
  else c.failed = true;
}

}  // namespace

bool run_depthwise(const DepthwiseRow& row, const ConvJob& job, int threads, bool forced) {
  const ConvShape& s = job.shape;
  const double taps = double(s.kernel[1] * s.kernel[2]), outputs = double(s.batch * s.out[1] * s.out[2] * s.channels);
  DepthwiseContext c{row, job, forced ? threads : worth(2e-3 * taps * outputs / row.gops, threads), {false}};
  parallel(c.tasks, depthwise_task, &c);
  trim_thread_scratch();
  return !c.failed;
}

}  // namespace qk
