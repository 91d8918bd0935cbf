// qk_conv. A range of lines is a convolution of its own: of whole images, or of one image that begins further down.
#include "../cpu/conv.h"
#include "../cpu/features.h"
#include "epilogue.h"
#include "kernels.h"
#include "pack.h"

namespace qk::capi {

ConvShape shape_of(const qk_conv_shape& q) {
  ConvShape s;
  s.batch = q.batch, s.channels = q.channels, s.filters = q.filters, s.groups = q.groups;
  for (int axis = 0; axis < 3; ++axis) {
    s.size[axis] = q.size[axis], s.kernel[axis] = q.kernel[axis], s.stride[axis] = q.stride[axis];
    s.dilation[axis] = q.dilation[axis], s.before[axis] = q.before[axis], s.out[axis] = q.out[axis];
  }
  return s;
}

int32_t check_shape(const qk_conv_shape& q, const Say& say) {
  const auto out_of_range = [&](const char* what, int64_t value) {
    return say(QK_BAD_ARGUMENT, "qk_conv_shape.%s is %lld, wanted 1 … 2^31 − 1", what, (long long)value);
  };
  const auto is_size = [](int64_t size) { return size >= 1 && size < kMost; };
  if (!is_size(q.batch)) return out_of_range("batch", q.batch);
  if (!is_size(q.channels)) return out_of_range("channels", q.channels);
  if (!is_size(q.filters)) return out_of_range("filters", q.filters);
  if (!is_size(q.groups)) return out_of_range("groups", q.groups);
  for (int axis = 0; axis < 3; ++axis) {
    if (!is_size(q.size[axis])) return out_of_range("size", q.size[axis]);
    if (!is_size(q.kernel[axis])) return out_of_range("kernel", q.kernel[axis]);
    if (!is_size(q.stride[axis])) return out_of_range("stride", q.stride[axis]);
    if (!is_size(q.dilation[axis])) return out_of_range("dilation", q.dilation[axis]);
    if (!is_size(q.out[axis])) return out_of_range("out", q.out[axis]);
    if (q.before[axis] <= -kMost || q.before[axis] >= kMost) return out_of_range("before", q.before[axis]);
  }
  if (q.channels % q.groups || q.filters % q.groups)
    return say(QK_BAD_ARGUMENT, "qk_conv_shape: %lld channels and %lld filters do not divide by %lld groups",
               (long long)q.channels, (long long)q.filters, (long long)q.groups);
  double image = double(q.batch) * double(q.channels), pixels = double(q.batch) * double(q.filters);
  double window = double(q.channels), reach = double(q.channels) * double(q.kernel[1] + 4);
  for (int axis = 0; axis < 3; ++axis) {
    image *= double(q.size[axis]), pixels *= double(q.out[axis]), window *= double(q.kernel[axis]);
    const double columns =
        double(q.out[axis]) * double(q.stride[axis]) + double(q.kernel[axis]) * double(q.dilation[axis]);
    if (columns * reach > 64 * kMostBytes) reach = kMostBytes * 2;
  }
  if (!fits(image) || !fits(pixels * 8) || !fits(window) || !fits(window * double(q.filters)) || !fits(reach))
    return say(QK_BAD_ARGUMENT, "qk_conv_shape: the convolution is too large to be indexed");
  return QK_OK;
}

namespace {

struct Call {
  ConvJob job;
  Entry entry;
  Room room;
  Epilogue epilogue;
};

// The lines as a shape of their own; `image` and `line` say where it begins.
int32_t cut(const qk_range& given, ConvShape& s, idx& image, idx& line, const Say& say) {
  image = line = 0;
  if (given.begin == 0 && given.end == 0) return QK_OK;
  const idx lines_of_image = s.out[0] * s.out[1], all = s.batch * lines_of_image;
  if (given.begin < 0 || given.begin >= given.end || given.end > all)
    return say(QK_BAD_ARGUMENT, "lines are %lld … %lld, wanted a part of 0 … %lld", (long long)given.begin,
               (long long)given.end, (long long)all);
  const idx count = given.end - given.begin;
  image = given.begin / lines_of_image;
  if (given.begin % lines_of_image == 0 && count % lines_of_image == 0) {
    s.batch = count / lines_of_image;
    return QK_OK;
  }
  line = given.begin % lines_of_image;
  if (line + count > lines_of_image || s.out[0] > 1)
    return say(QK_BAD_ARGUMENT, "lines %lld … %lld are neither whole images nor lines of one flat image",
               (long long)given.begin, (long long)given.end);
  s.batch = 1, s.out[1] = count, s.before[1] -= line * s.stride[1];
  return QK_OK;
}

int32_t check_steps(const qk_conv_args& q, ConvJob& job, const Say& say) {
  const ConvShape& s = job.shape;
  job.x_step[3] = s.channels, job.x_step[2] = s.size[2] * s.channels;
  job.x_step[1] = s.size[1] * job.x_step[2], job.x_step[0] = s.size[0] * job.x_step[1];
  if (!q.x_step[0] && !q.x_step[1] && !q.x_step[2] && !q.x_step[3]) return QK_OK;
  const int64_t sizes[] = {s.batch, s.size[0], s.size[1], s.size[2]};
  for (int d = 0; d < 4; ++d) {
    if (!strides_fit(sizes[d], q.x_step[d], 1, 0)) return say(QK_BAD_ARGUMENT, "x_step[%d] is too large", d);
    job.x_step[d] = q.x_step[d];
  }
  return QK_OK;
}

// What the kernels without windows ask for, where run_conv may hand the convolution to one.
size_t direct_bytes(const KernelRow& row, const ConvJob& job) {
  if (job.shape.size[0] > 1 || job.shape.kernel[0] > 1) return 0;
  const DirectList list = direct_rows();
  size_t most = 0;
  for (int i = 0; i < list.count; ++i) {
    const DirectRow& one = list.rows[i];
    if (strcmp(one.isa, row.isa) || one.a_signed != row.a_signed || one.w_signed != row.w_signed) continue;
    const size_t bytes = one.scratch_bytes(job);
    if (bytes > most) most = bytes;
  }
  return most;
}

// What a task asks for: windows of a band of pixels, and what their product takes.
size_t task_bytes(const KernelRow& row, const ConvJob& job) {
  const ConvShape& s = job.shape;
  Gemm g = {};
  g.n = s.filters / job.matrices,
  g.k = padded(s.kernel[0] * s.kernel[1] * s.kernel[2] * (s.channels / job.matrices), kPackedK);
  g.a_col = 1, g.l1_bytes = job.l1_bytes, g.l2_bytes = job.l2_bytes, g.w_zero = job.w_zero;
  static constexpr Epilogue some = {};
  g.epilogue = &some;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const idx band = min_of(padded(pixels, row.mr), max_of(job.l2_bytes / 4 / g.k / row.mr, 1) * row.mr);
  size_t most = 0;
  for (const idx m : {band, pixels}) {  // windows of a band, or the image itself
    g.m = m;
    const size_t bytes = row.scratch_bytes(g);
    if (bytes > most) most = bytes;
  }
  const size_t product = lines(most) + lines(size_t(band) * size_t(g.k + 64)), direct = direct_bytes(row, job);
  return product > direct ? product : direct;
}

int32_t read_conv(const qk_conv_args* args, bool query, Call& c, const Say& say) {
  qk_conv_args q;
  if (const int32_t status = read_struct(args, q, "qk_conv_args", say)) return status;
  if (!q.shape) return say(QK_NULL_POINTER, "qk_conv_args.shape is NULL");
  if (const int32_t status = check_shape(*q.shape, say)) return status;
  ConvJob& job = c.job;
  job = {};
  ConvShape& s = job.shape = shape_of(*q.shape);
  if (q.x_type != QK_S8 && q.x_type != QK_U8)
    return say(QK_BAD_ARGUMENT, "x_type is %d, wanted QK_S8 or QK_U8", q.x_type);
  const bool x_signed = q.x_type == QK_S8;
  if (q.x_zero < (x_signed ? -128 : 0) || q.x_zero > (x_signed ? 127 : 255))
    return say(QK_BAD_ARGUMENT, "x_zero is %d, which is no code of x's type", q.x_zero);
  if (!query && !q.x) return say(QK_NULL_POINTER, "x is NULL");
  ConvWeights w;
  if (const int32_t status = read_packed_conv(q.w, s, w, say)) return status;
  if (const int32_t status = check_steps(q, job, say)) return status;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  Epilogue whole;
  if (const int32_t status = read_epilogue(q.epilogue, {pixels, s.filters, false, true, false, query}, whole, say))
    return status;
  idx image, line;
  if (const int32_t status = cut(q.lines, s, image, line, say)) return status;
  const idx first = (image * s.out[0] * q.shape->out[1] + line) * s.out[2];
  c.epilogue = query ? whole : epilogue_from(whole, first);
  job.x = query ? nullptr : static_cast<const uint8_t*>(q.x) + image * job.x_step[0];
  job.x_zero = q.x_zero;
  job.w = w.data, job.w_sums = w.sums, job.matrices = w.matrices, job.w_zero = q.w->w_zero;
  job.l1_bytes = cache_bytes(1), job.l2_bytes = cache_bytes(2);
  job.epilogue = &c.epilogue;
  char types[16];
  snprintf(types, sizeof types, "%s%ss32", x_signed ? "s8" : "u8", w.is_signed ? "s8" : "u8");
  const idx k = s.kernel[0] * s.kernel[1] * s.kernel[2] * (s.channels / s.groups);
  const Problem problem = {
      "conv", types, w.depthwise ? "c4t4" : "n16k4", s.batch * s.out[0] * s.out[1] * s.out[2], s.filters, k, &s};
  if (const int32_t status = choose(q.kernel, problem, c.entry, say)) return status;
  const bool depthwise = c.entry.kind == Kind::depthwise;
  if (depthwise && job.x_step[3] != s.channels && s.size[2] > 1)
    return say(QK_BAD_ARGUMENT, "x_step[3] is %lld, wanted %lld: the pixels of a depthwise convolution are adjacent",
               (long long)job.x_step[3], (long long)s.channels);
  c.room = {lines(size_t(s.filters) * 4) + spread_bytes(s.filters),
            depthwise ? c.entry.depthwise->scratch_bytes(job) : task_bytes(*c.entry.product, job)};
  return QK_OK;
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_conv_workspace(const qk_conv_args* args, int32_t tasks, size_t* bytes, char* message, size_t message_bytes) {
  return workspace(read_conv, args, tasks, bytes, message, message_bytes);
}

int32_t qk_conv(const qk_conv_args* args, const qk_host* host, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  Call c;
  if (const int32_t status = read_conv(args, false, c, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, c.room, say)) return status;
  const bool good = spread_zero(c.epilogue, c.job.shape.filters) &&
                    (c.entry.kind == Kind::depthwise ? run_depthwise(*c.entry.depthwise, c.job, hosted.tasks(), false)
                                                     : run_conv(*c.entry.product, c.job, hosted.tasks(), false));
  return good ? QK_OK : say(QK_NO_MEMORY, "no memory for scratch");
}

}  // extern "C"
