// qk_max_pool, qk_avg_pool, qk_global_avg_pool.
#include "../cpu/environment.h"
#include "network.h"

namespace qk::capi {
namespace {

int32_t check_image(const qk_pool_args& q, const Say& say) {
  const int64_t sizes[] = {q.images, q.height, q.width, q.channels};
  double bytes = 1;
  for (const int64_t size : sizes) {
    if (size < 1 || size >= kMost)
      return say(QK_BAD_ARGUMENT, "x has a size of %lld, wanted 1 … 2^31 − 1", (long long)size);
    bytes *= double(size);
  }
  return fits(bytes) ? QK_OK : say(QK_BAD_ARGUMENT, "x is too large");
}

// Elements between images, rows, pixels, channels; all 0: adjacent.
int32_t read_steps(const int64_t (&given)[4], const int64_t (&sizes)[4], const char* what, idx (&step)[4],
                   const Say& say) {
  bool any = false;
  for (const int64_t one : given) any = any || one != 0;
  double reach = 0;
  int64_t adjacent = 1;
  for (int d = 3; d >= 0; adjacent *= sizes[d--]) {
    step[d] = any ? given[d] : adjacent;
    reach += double(sizes[d]) * (step[d] < 0 ? -double(step[d]) : double(step[d]));
  }
  return fits(reach) ? QK_OK : say(QK_BAD_ARGUMENT, "the steps of %s are too large", what);
}

// Each window has a pixel of the image as its first or a later one.
int32_t check_window(const qk_pool_args& q, bool dilates, const Say& say) {
  const int64_t size[2] = {q.height, q.width}, out[2] = {q.out_height, q.out_width};
  for (int i = 0; i < 2; ++i) {
    const int64_t window = q.window[i], stride = q.stride[i], gap = q.dilation[i], before = q.before[i];
    for (const int64_t one : {window, stride, gap, out[i]})
      if (one < 1 || one >= kMost)
        return say(QK_BAD_ARGUMENT, "window, stride, dilation or the result has %lld, wanted 1 … 2^31 − 1",
                   (long long)one);
    if (!dilates && gap != 1)
      return say(QK_BAD_ARGUMENT, "dilation is %lld, wanted 1: means have none", (long long)gap);
    if (before < 0 || before >= kMost || double(before) >= double(window) * double(gap))
      return say(QK_BAD_ARGUMENT, "before is %lld, wanted 0 or more, and less than the window", (long long)before);
    if (double(out[i] - 1) * double(stride) - double(before) >= double(size[i]))
      return say(QK_BAD_ARGUMENT, "a result of %lld windows, the last of which lies outside of the image",
                 (long long)out[i]);
  }
  if (!fits(double(q.images) * double(out[0]) * double(out[1]) * double(q.channels)))
    return say(QK_BAD_ARGUMENT, "the result is too large");
  return QK_OK;
}

int32_t read_scales(const qk_pool_args& q, const Say& say) {
  if (const int32_t status = check_scale("scale", q.scale, say)) return status;
  if (const int32_t status = check_scale("out_scale", q.out_scale, say)) return status;
  if (const int32_t status = check_point("zero", q.zero, q.type, say)) return status;
  return check_point("out_zero", q.out_zero, q.type, say);
}

// x and its sizes; `query`: pointers may be left out.
int32_t read_images(const qk_pool_args& q, bool query, Pool& p, const Say& say) {
  if (const int32_t status = check_codes_type(q.type, say)) return status;
  if (const int32_t status = check_image(q, say)) return status;
  const int64_t sizes[4] = {q.images, q.height, q.width, q.channels};
  if (const int32_t status = read_steps(q.x_step, sizes, "x", p.x_step, say)) return status;
  if (!query && (!q.x || !q.out)) return say(QK_NULL_POINTER, "%s is NULL", q.x ? "out" : "x");
  p.x = static_cast<const uint8_t*>(q.x), p.out = q.out;
  p.images = q.images, p.size[0] = q.height, p.size[1] = q.width, p.channels = q.channels;
  p.scale = q.scale, p.out_scale = q.out_scale, p.zero = q.zero, p.out_zero = q.out_zero;
  return QK_OK;
}

int32_t choose_pool(const qk_pool_args& q, const char* op, const char* to, const Pool& p, Entry& entry,
                    const Say& say) {
  char types[16];
  snprintf(types, sizeof types, "%s%s", code_letters(q.type), to);
  const int64_t pixels = p.images * p.out_size[0] * p.out_size[1];
  return choose(q.kernel, {op, types, "", pixels, p.channels, p.kernel[0] * p.kernel[1], nullptr}, entry, say);
}

int32_t run_windows(const char* op, bool means, const qk_pool_args* args, const qk_host* host, const Say& say) {
  qk_pool_args q;
  if (const int32_t status = read_struct(args, q, "qk_pool_args", say)) return status;
  Pool p = {};
  if (const int32_t status = read_images(q, false, p, say)) return status;
  if (const int32_t status = check_window(q, !means, say)) return status;
  const int64_t sizes[4] = {q.images, q.out_height, q.out_width, q.channels};
  if (const int32_t status = read_steps(q.out_step, sizes, "out", p.out_step, say)) return status;
  if (means)
    if (const int32_t status = read_scales(q, say)) return status;
  p.out_size[0] = q.out_height, p.out_size[1] = q.out_width, p.count_pads = q.count_outside != 0;
  for (int i = 0; i < 2; ++i) {
    p.kernel[i] = q.window[i], p.stride[i] = q.stride[i];
    p.before[i] = q.before[i], p.dilation[i] = q.dilation[i];
  }
  Entry entry;
  if (const int32_t status = choose_pool(q, op, code_letters(q.type), p, entry, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, {0, 0}, say)) return status;
  run(*entry.pool, p, hosted.tasks(), false);
  return QK_OK;
}

// ---------------------------------------------------------------- the whole image

struct GlobalCall {
  qk_pool_args q;
  Pool p;
  Entry sum, requantize;
  idx out_step[4];
  float m;
  Room room;
};

int32_t read_global(const qk_pool_args* args, bool query, GlobalCall& c, const Say& say) {
  qk_pool_args& q = c.q;
  if (const int32_t status = read_struct(args, q, "qk_pool_args", say)) return status;
  Pool& p = c.p = {};
  if (const int32_t status = read_images(q, query, p, say)) return status;
  const double pixels = double(q.height) * double(q.width);
  if (pixels >= double(1 << 23))
    return say(QK_BAD_ARGUMENT, "x has %g pixels a channel, wanted fewer than 2^23", pixels);
  const int64_t sizes[4] = {q.images, 1, 1, q.channels};
  if (const int32_t status = read_steps(q.out_step, sizes, "out", c.out_step, say)) return status;
  for (int i = 0; i < 2; ++i) p.kernel[i] = p.size[i], p.stride[i] = p.dilation[i] = p.out_size[i] = 1;
  p.out_step[0] = q.channels * 4, p.out_step[3] = 4;
  c.room = {size_t(q.images * q.channels) * 4, 0};
  if (const int32_t status = choose_pool(q, "channel_sum", "s32", p, c.sum, say)) return status;
  const char* const types = q.type == QK_S8 ? "s32s8" : "s32u8";
  if (const int32_t status =
          choose(QK_ANY_KERNEL, {"requantize", types, "", q.images, q.channels, 1, nullptr}, c.requantize, say))
    return status;
  if (query) return QK_OK;
  if (const int32_t status = read_scales(q, say)) return status;
  const FloatEnvironment exact;
  const volatile float unit = q.out_scale * float(pixels);
  c.m = q.scale / unit;
  if (c.m > 0 && is_finite(c.m)) return QK_OK;
  return say(QK_BAD_ARGUMENT, "out_scale is %g beside %g: their ratio is not finite and > 0", double(q.out_scale),
             double(q.scale));
}

// Sums of channels less the zero points → codes, a row of them for each image.
void write_means(const GlobalCall& c, int32_t* sums, int tasks) {
  const qk_pool_args& q = c.q;
  const int32_t zeros = int32_t(q.height * q.width * q.zero);
  for (idx i = 0; i < c.p.images * c.p.channels; ++i) sums[i] = int32_t(uint32_t(sums[i]) - uint32_t(zeros));
  const Limits most = limits_of(q.type);
  uint8_t* const codes = reinterpret_cast<uint8_t*>(sums);  // a byte replaces four, from the front
  Elementwise job = {};
  job.in = sums, job.out = codes, job.rows = 1, job.inner = c.p.channels, job.at = {1, 1, 1, c.p.channels};
  job.low = most.low, job.high = most.high;
  job.by.rounding = kHalfEven, job.by.m = &c.m, job.by.zero = &q.out_zero;
  job.by.low = most.low, job.by.high = most.high;
  const bool adjacent = c.out_step[3] == 1;
  for (idx image = 0; image < c.p.images; ++image) {
    uint8_t* const to = static_cast<uint8_t*>(q.out) + image * c.out_step[0];
    job.in = sums + image * c.p.channels;
    job.out = adjacent ? to : codes + image * c.p.channels * 4;
    run(*c.requantize.elementwise, job, tasks, false);
    for (idx j = 0; j < c.p.channels && !adjacent; ++j) to[j * c.out_step[3]] = static_cast<uint8_t*>(job.out)[j];
  }
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_max_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_windows("max_pool", false, args, host, say_to(message, message_bytes));
}

int32_t qk_avg_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_windows("avg_pool", true, args, host, say_to(message, message_bytes));
}

int32_t qk_global_avg_pool_workspace(const qk_pool_args* args, int32_t tasks, size_t* bytes, char* message,
                                     size_t message_bytes) {
  return workspace(read_global, args, tasks, bytes, message, message_bytes);
}

int32_t qk_global_avg_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  GlobalCall c;
  if (const int32_t status = read_global(args, false, c, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, c.room, say)) return status;
  int32_t* const sums = static_cast<int32_t*>(qk::thread_scratch(qk::kImageScratch, c.room.call));
  if (!sums) return say(QK_NO_MEMORY, "no memory for scratch");
  c.p.out = sums;
  run(*c.sum.pool, c.p, hosted.tasks(), false);
  write_means(c, sums, hosted.tasks());
  return QK_OK;
}

}  // extern "C"
