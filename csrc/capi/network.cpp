// What stands between products: qk_add, qk_mul, qk_lookup, qk_rescale_table, qk_softmax, qk_softmax_table.
#include "network.h"

#include <float.h>
#include <math.h>

#include "../cpu/environment.h"

namespace qk::capi {

const char* code_letters(int32_t type) { return type == QK_S8 ? "s8" : type == QK_U8 ? "u8" : nullptr; }

int32_t check_codes_type(int32_t type, const Say& say) {
  return code_letters(type) ? QK_OK : say(QK_BAD_ARGUMENT, "type is %d, wanted QK_S8 or QK_U8", type);
}

int32_t check_scale(const char* name, float scale, const Say& say) {
  if (scale > 0 && is_finite(scale)) return QK_OK;
  return say(QK_BAD_ARGUMENT, "%s is %g, wanted finite and > 0", name, double(scale));
}

int32_t check_point(const char* name, int32_t zero, int32_t type, const Say& say) {
  const Limits most = limits_of(type);
  if (zero >= most.low && zero <= most.high) return QK_OK;
  return say(QK_BAD_ARGUMENT, "%s is %d, wanted a code of %d … %d", name, zero, most.low, most.high);
}

namespace {

int32_t check_sizes(int64_t rows, int64_t columns, const Say& say) {
  if (rows >= 1 && columns >= 1 && rows < kMost && columns < kMost && fits(double(rows) * double(columns) * 4))
    return QK_OK;
  return say(QK_BAD_ARGUMENT, "an array of (%lld, %lld), wanted sizes of 1 … 2^31 − 1", (long long)rows,
             (long long)columns);
}

// types: the letters of `type`, so many times.
int32_t choose_codes(int32_t kernel, const char* op, const char* types, int64_t rows, int64_t columns, Entry& entry,
                     const Say& say) {
  return choose(kernel, {op, types, "", rows, columns, 1, nullptr}, entry, say);
}

int32_t start(const Entry& entry, const Elementwise& job, const qk_host* host, const Say& say) {
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, {0, 0}, say)) return status;
  run(*entry.elementwise, job, hosted.tasks(), false);
  return QK_OK;
}

// ---------------------------------------------------------------- add, mul

int32_t read_pair(const qk_pair_args& q, const Say& say) {
  if (const int32_t status = check_codes_type(q.type, say)) return status;
  if (const int32_t status = check_sizes(1, q.count, say)) return status;
  if (!q.a || !q.b || !q.out) return say(QK_NULL_POINTER, "%s is NULL", !q.a ? "a" : !q.b ? "b" : "out");
  if (const int32_t status = check_scale("a_scale", q.a_scale, say)) return status;
  if (const int32_t status = check_scale("b_scale", q.b_scale, say)) return status;
  if (const int32_t status = check_scale("out_scale", q.out_scale, say)) return status;
  if (const int32_t status = check_point("a_zero", q.a_zero, q.type, say)) return status;
  if (const int32_t status = check_point("b_zero", q.b_zero, q.type, say)) return status;
  return check_point("out_zero", q.out_zero, q.type, say);
}

// A14: false where something is not finite.
bool set_sum(const qk_pair_args& q, Elementwise& job) {
  job.a_factor = q.a_scale / q.out_scale, job.b_factor = q.b_scale / q.out_scale;
  const float of_a = job.a_factor * float(q.a_zero), of_b = job.b_factor * float(q.b_zero), both = of_a + of_b;
  job.offset = float(q.out_zero) - both;
  return is_finite(job.a_factor) && is_finite(job.b_factor) && is_finite(job.offset);
}

bool set_product(const qk_pair_args& q, Elementwise& job) {
  job.a_factor = multiplier(q.a_scale, q.b_scale, q.out_scale);
  job.a_zero = q.a_zero, job.b_zero = q.b_zero, job.offset = float(q.out_zero);
  return is_finite(job.a_factor);
}

int32_t run_pair(const char* op, bool (*set)(const qk_pair_args&, Elementwise&), const qk_pair_args* args,
                 const qk_host* host, const Say& say) {
  qk_pair_args q;
  if (const int32_t status = read_struct(args, q, "qk_pair_args", say)) return status;
  if (const int32_t status = read_pair(q, say)) return status;
  const FloatEnvironment exact;
  Elementwise job = {};
  job.in = q.a, job.other = q.b, job.out = q.out;
  job.rows = 1, job.inner = q.count, job.at = {1, 1, 1, idx(q.count)};
  if (!set(q, job))
    return say(QK_BAD_ARGUMENT, "out_scale is %g beside %g and %g: their ratio is not finite", double(q.out_scale),
               double(q.a_scale), double(q.b_scale));
  Entry entry;
  const char* const types = q.type == QK_S8 ? "s8s8s8" : "u8u8u8";
  if (const int32_t status = choose_codes(q.kernel, op, types, 1, q.count, entry, say)) return status;
  return start(entry, job, host, say);
}

// ---------------------------------------------------------------- lookup

// Rows that lie apart, some of them each task.
struct Rows {
  const ElementwiseRow& row;
  const Elementwise& job;
  idx in_row, out_row, rows, step;
};

void rows_task(void* context, int index) {
  const Rows& r = *static_cast<const Rows*>(context);
  for (idx i = r.step * index; i < min_of(r.step * (index + 1), r.rows); ++i) {
    Elementwise one = r.job;
    one.in = static_cast<const uint8_t*>(r.job.in) + i * r.in_row;
    one.out = static_cast<uint8_t*>(r.job.out) + i * r.out_row;
    r.row.block(one, {0, 1}, {0, one.inner});
  }
}

int32_t run_lookup(const qk_lookup_args* args, const qk_host* host, const Say& say) {
  qk_lookup_args q;
  if (const int32_t status = read_struct(args, q, "qk_lookup_args", say)) return status;
  if (const int32_t status = check_codes_type(q.type, say)) return status;
  if (const int32_t status = check_sizes(q.rows, q.columns, say)) return status;
  const int64_t in_row = q.in_row ? q.in_row : q.columns, out_row = q.out_row ? q.out_row : q.columns;
  if (!strides_fit(q.rows, in_row, q.columns, 1) || out_row < q.columns || !strides_fit(q.rows, out_row, q.columns, 1))
    return say(QK_BAD_ARGUMENT, "rows lie %lld and %lld apart, wanted 0, or out's at least %lld", (long long)q.in_row,
               (long long)q.out_row, (long long)q.columns);
  if (!q.in || !q.out || !q.table) return say(QK_NULL_POINTER, "%s is NULL", !q.in ? "in" : !q.out ? "out" : "table");
  Entry entry;
  if (const int32_t status = choose_codes(q.kernel, "lookup", "u8u8", q.rows, q.columns, entry, say)) return status;
  uint8_t by_byte[256];
  const int turn = q.type == QK_S8 ? 128 : 0;
  for (int i = 0; i < 256; ++i) by_byte[i] = static_cast<const uint8_t*>(q.table)[i ^ turn];
  Elementwise job = {};
  job.in = q.in, job.out = q.out, job.table = by_byte;
  const bool adjacent = q.rows == 1 || (in_row == q.columns && out_row == q.columns);
  job.rows = 1, job.inner = adjacent ? q.rows * q.columns : q.columns, job.at = {1, 1, 1, job.inner};
  if (adjacent) return start(entry, job, host, say);
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, {0, 0}, say)) return status;
  const idx tasks = min_of(hosted.tasks(), q.rows), step = ceil_div(q.rows, tasks);
  Rows rows = {*entry.elementwise, job, idx(in_row), idx(out_row), idx(q.rows), step};
  parallel(int(ceil_div(q.rows, step)), rows_task, &rows);
  return QK_OK;
}

// ---------------------------------------------------------------- softmax

int32_t run_softmax(const qk_softmax_args* args, const qk_host* host, const Say& say) {
  qk_softmax_args q;
  if (const int32_t status = read_struct(args, q, "qk_softmax_args", say)) return status;
  if (const int32_t status = check_codes_type(q.type, say)) return status;
  if (const int32_t status = check_sizes(q.rows, q.columns, say)) return status;
  if (!q.in || !q.out || !q.table) return say(QK_NULL_POINTER, "%s is NULL", !q.in ? "in" : !q.out ? "out" : "table");
  if (const int32_t status = check_scale("out_scale", q.out_scale, say)) return status;
  if (q.out_scale > 1) return say(QK_BAD_ARGUMENT, "out_scale is %g, wanted at most 1", double(q.out_scale));
  if (const int32_t status = check_point("out_zero", q.out_zero, q.type, say)) return status;
  Entry entry;
  const char* const types = q.type == QK_S8 ? "s8s8" : "u8u8";
  if (const int32_t status = choose_codes(q.kernel, "softmax", types, q.rows, q.columns, entry, say)) return status;
  const FloatEnvironment exact;
  Elementwise job = {};
  job.in = q.in, job.out = q.out, job.rows = q.rows, job.inner = q.columns, job.at = {1, 1, 1, idx(q.columns)};
  job.scale = q.table, job.a_zero = q.out_zero;
  const volatile float times = 1.0f / q.out_scale;
  job.a_factor = floorf(times);
  return start(entry, job, host, say);
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_add(const qk_pair_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_pair("add", set_sum, args, host, say_to(message, message_bytes));
}

int32_t qk_mul(const qk_pair_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_pair("mul", set_product, args, host, say_to(message, message_bytes));
}

int32_t qk_lookup(const qk_lookup_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_lookup(args, host, say_to(message, message_bytes));
}

int32_t qk_rescale_table(int32_t type, float scale, int32_t zero, float out_scale, int32_t out_zero, void* table,
                         char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_codes_type(type, say)) return status;
  if (const int32_t status = check_scale("scale", scale, say)) return status;
  if (const int32_t status = check_scale("out_scale", out_scale, say)) return status;
  if (const int32_t status = check_point("zero", zero, type, say)) return status;
  if (const int32_t status = check_point("out_zero", out_zero, type, say)) return status;
  if (!table) return say(QK_NULL_POINTER, "table is NULL");
  const qk::FloatEnvironment exact;
  const Limits most = limits_of(type);
  const bool same = scale == out_scale && zero == out_zero;
  for (int32_t code = most.low; code <= most.high; ++code) {
    const float value = qk::dequantize(code, zero, scale);
    const int32_t to = qk::quantize(value, out_scale, most.low - out_zero, most.high - out_zero) + out_zero;
    static_cast<uint8_t*>(table)[code - most.low] = uint8_t(same ? code : to);
  }
  return QK_OK;
}

int32_t qk_softmax(const qk_softmax_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_softmax(args, host, say_to(message, message_bytes));
}

int32_t qk_softmax_table(float scale, int64_t columns, float* table, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_scale("scale", scale, say)) return status;
  if (columns < 1 || columns >= kMost)
    return say(QK_BAD_ARGUMENT, "columns is %lld, wanted 1 … 2^31 − 1", (long long)columns);
  if (!table) return say(QK_NULL_POINTER, "table is NULL");
  const qk::FloatEnvironment exact;
  const double least = double(logf(FLT_MAX / float(columns))) - 5, room = least > 0 ? least : 0;
  for (int i = 0; i < 256; ++i) table[i] = float(exp((i - 255.0 + room / double(scale)) * double(scale)));
  return QK_OK;
}

}  // extern "C"
