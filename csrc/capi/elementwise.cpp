// qk_quantize, qk_dequantize, qk_requantize, qk_dynamic_quantize, qk_multiplier.
#include <math.h>

#include "kernels.h"

namespace qk::capi {
namespace {

const char* name_of(int32_t type) {
  static const char* const names[] = {"s32", "f32", "f16", "bf16", "s8", "u8", "s16", "u16"};
  return type >= QK_S32 && type <= QK_U16 ? names[type] : nullptr;
}

int32_t check_placement(const qk_elementwise_args& q, Elementwise& job, const Say& say) {
  if (q.scale_rows < 1 || q.scale_columns < 1 || q.repeat < 1 || q.group < 1 || q.scale_rows >= kMost ||
      q.repeat >= kMost || q.group >= 2 * kMost || q.scale_columns != ceil_div(q.columns, q.group))
    return say(QK_BAD_ARGUMENT, "a scale of (%lld, %lld), repeat %lld, group %lld does not cover %lld columns",
               (long long)q.scale_rows, (long long)q.scale_columns, (long long)q.repeat, (long long)q.group,
               (long long)q.columns);
  if (!fits(double(q.scale_rows) * double(q.scale_columns)))
    return say(QK_BAD_ARGUMENT, "a scale of (%lld, %lld) is too large", (long long)q.scale_rows,
               (long long)q.scale_columns);
  job.at = {idx(q.scale_rows), idx(q.scale_columns), idx(q.repeat), idx(min_of(q.group, q.columns))};
  return QK_OK;
}

int32_t check_zero(const qk_elementwise_args& q, int32_t type, const Say& say) {
  const Limits most = limits_of(type);
  for (int64_t i = 0; q.zero && i < q.scale_rows * q.scale_columns; ++i)
    if (q.zero[i] < most.low || q.zero[i] > most.high)
      return say(QK_BAD_ARGUMENT, "zero has %d at %lld, wanted codes of %d … %d", q.zero[i], (long long)i, most.low,
                 most.high);
  return QK_OK;
}

int32_t check_codes(const qk_elementwise_args& q, int32_t type, const Say& say) {
  const Limits most = limits_of(type);
  if (q.low < most.low || q.high > most.high || q.low > q.high)
    return say(QK_BAD_ARGUMENT, "codes of %d … %d, wanted a part of %d … %d", q.low, q.high, most.low, most.high);
  return QK_OK;
}

int32_t read_scale(const qk_elementwise_args& q, int32_t codes, Elementwise& job, const Say& say) {
  if (const int32_t status = check_placement(q, job, say)) return status;
  if (!q.scale) return say(QK_NULL_POINTER, "scale is NULL");
  if (const int32_t status = check_zero(q, codes, say)) return status;
  job.scale = q.scale, job.zero = q.zero;
  return QK_OK;
}

int32_t read_dequantize(const qk_elementwise_args& q, Elementwise& job, const Say& say) {
  return read_scale(q, q.in_type, job, say);
}

int32_t read_quantize(const qk_elementwise_args& q, Elementwise& job, const Say& say) {
  const int32_t status = check_codes(q, q.out_type, say);
  return status ? status : read_scale(q, q.out_type, job, say);
}

int32_t read_requantize(const qk_elementwise_args& q, Elementwise& job, const Say& say) {
  if (const int32_t status = check_codes(q, q.out_type, say)) return status;
  if (const int32_t status = check_placement(q, job, say)) return status;
  if (const int32_t status = check_zero(q, q.out_type, say)) return status;
  if (q.rounding < QK_HALF_EVEN || q.rounding > QK_HALF_AWAY)
    return say(QK_BAD_ARGUMENT, "rounding is %d, which is none", q.rounding);
  Requantizer& by = job.by;
  by.rounding = Rounding(q.rounding), by.low = q.low, by.high = q.high;
  by.bias = q.bias, by.zero = q.zero;
  if (by.rounding == kHalfEven) return (by.m = q.m) ? QK_OK : say(QK_NULL_POINTER, "m is NULL");
  if (by.rounding == kHalfAway) return (by.m64 = q.m64) ? QK_OK : say(QK_NULL_POINTER, "m64 is NULL");
  if (!q.q || !q.e) return say(QK_NULL_POINTER, "%s is NULL", q.q ? "e" : "q");
  by.q = q.q, by.e = q.e;
  for (int64_t i = 0; i < q.scale_rows * q.scale_columns; ++i)
    if (q.e[i] < -31 || q.e[i] > 30)
      return say(QK_BAD_ARGUMENT, "e has %d at %lld, wanted −31 … 30", q.e[i], (long long)i);
  return QK_OK;
}

int32_t read_dynamic(const qk_elementwise_args& q, Elementwise& job, const Say& say) {
  if (const int32_t status = check_codes(q, q.out_type, say)) return status;
  const bool good = q.low < 0 ? q.low == -q.high && q.high > 0 : q.low == 0 && q.high > 0;
  if (!good) return say(QK_BAD_ARGUMENT, "codes of %d … %d, wanted −Q … Q, or 0 … Q", q.low, q.high);
  if (q.group < 1) return say(QK_BAD_ARGUMENT, "group is %lld, wanted at least 1", (long long)q.group);
  const idx group = min_of(q.group, q.columns);
  job.at = {job.rows, ceil_div(job.inner, group), 1, group};
  if (!q.found_scale || !q.found_zero)
    return say(QK_NULL_POINTER, "%s is NULL", q.found_scale ? "found_zero" : "found_scale");
  job.found_scale = q.found_scale, job.found_zero = q.found_zero, job.sums = q.found_sums;
  return QK_OK;
}

using Read = int32_t (*)(const qk_elementwise_args&, Elementwise&, const Say&);

int32_t run_op(const char* op, Read read, const qk_elementwise_args* args, const qk_host* host, const Say& say) {
  qk_elementwise_args q;
  if (const int32_t status = read_struct(args, q, "qk_elementwise_args", say)) return status;
  const char *const in = name_of(q.in_type), *const out = name_of(q.out_type);
  if (!in || !out)
    return say(QK_BAD_ARGUMENT, "%s is %d, which is no type", in ? "out_type" : "in_type", in ? q.out_type : q.in_type);
  if (q.rows < 1 || q.columns < 1 || q.rows >= kMost || q.columns >= kMost ||
      !fits(double(q.rows) * double(q.columns) * 4))
    return say(QK_BAD_ARGUMENT, "an array of (%lld, %lld), wanted sizes of 1 … 2^31 − 1", (long long)q.rows,
               (long long)q.columns);
  char types[16];
  snprintf(types, sizeof types, "%s%s", in, out);
  Entry entry;
  if (const int32_t status = choose(q.kernel, {op, types, "", q.rows, q.columns, 1, nullptr}, entry, say))
    return status;
  if (!q.in || !q.out) return say(QK_NULL_POINTER, "%s is NULL", q.in ? "out" : "in");
  Elementwise job = {};
  job.in = q.in, job.out = q.out, job.rows = q.rows, job.inner = q.columns, job.low = q.low, job.high = q.high;
  if (const int32_t status = read(q, job, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, {0, 0}, say)) return status;
  run(*entry.elementwise, job, hosted.tasks(), false);
  return QK_OK;
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_quantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_op("quantize", read_quantize, args, host, say_to(message, message_bytes));
}

int32_t qk_dequantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_op("dequantize", read_dequantize, args, host, say_to(message, message_bytes));
}

int32_t qk_requantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_op("requantize", read_requantize, args, host, say_to(message, message_bytes));
}

int32_t qk_dynamic_quantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_op("dynamic_quantize", read_dynamic, args, host, say_to(message, message_bytes));
}

int32_t qk_multiplier(double real, int32_t* q, int32_t* e, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!q || !e) return say(QK_NULL_POINTER, "%s is NULL", q ? "e" : "q");
  if (!(real > 0) || !isfinite(real)) return say(QK_BAD_ARGUMENT, "the multiplier is %g, wanted finite and > 0", real);
  int power;
  const double scaled = ldexp(frexp(real, &power), 31);
  int64_t whole = int64_t(floor(scaled));
  whole += scaled - double(whole) >= 0.5;  // half away from zero
  if (whole == int64_t(1) << 31) whole >>= 1, ++power;
  *q = power < -31 ? 0 : power > 30 ? INT32_MAX : int32_t(whole);
  *e = power < -31 ? 0 : power > 30 ? 30 : power;
  return QK_OK;
}

}  // extern "C"
