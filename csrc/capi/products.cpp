// qk_gemm and qk_linear. A range is a product of its own: pointers move to its corner, and the rest is as ever.
#include "../cpu/features.h"
#include "../cpu/linear.h"
#include "epilogue.h"
#include "groups.h"
#include "kernels.h"
#include "pack.h"

namespace qk::capi {
namespace {

const char* letters(int32_t type) { return type == QK_U8 ? "u8" : type == QK_S8 ? "s8" : "f32"; }

int32_t check_range(const qk_range& given, idx size, idx step, const char* what, Range& range, const Say& say) {
  range = {0, size};
  if (given.begin == 0 && given.end == 0) return QK_OK;
  if (given.begin < 0 || given.begin >= given.end || given.end > size || given.begin % step)
    return say(QK_BAD_ARGUMENT, "%s are %lld … %lld, wanted a part of 0 … %lld%s", what, (long long)given.begin,
               (long long)given.end, (long long)size, step > 1 ? " that begins at a multiple of 16" : "");
  range = {idx(given.begin), idx(given.end)};
  return QK_OK;
}

struct Operands {  // what gemm and linear share
  int64_t m;
  int32_t type;
  const void* a;
  int64_t a_row, a_column;
  const int32_t *a_zero, *w_zero;
  qk_range rows, columns;
};

struct Part {  // of a product
  Range rows, columns;
  Weights w;
};

int32_t read_operands(const Operands& o, bool floats, bool query, Gemm& g, Part& part, const Say& say) {
  if (o.m < 1 || o.m >= kMost) return say(QK_BAD_ARGUMENT, "m is %lld, wanted 1 … 2^31 − 1", (long long)o.m);
  if (o.type != QK_S8 && o.type != QK_U8 && !(floats && o.type == QK_F32))
    return say(QK_BAD_ARGUMENT, "a_type is %d, wanted QK_S8 or QK_U8%s", o.type, floats ? ", or QK_F32" : "");
  const Weights& w = part.w;  // read already
  if (!query && !o.a) return say(QK_NULL_POINTER, "a is NULL");
  if (!strides_fit(o.m, o.a_row, w.k, o.a_column)) return say(QK_BAD_ARGUMENT, "the strides of a are too large");
  if (o.type == QK_F32 && (o.a_column != 1 || o.a_row != w.k))
    return say(QK_BAD_ARGUMENT, "a of real numbers has strides %lld and %lld, wanted adjacent rows of k=%lld",
               (long long)o.a_row, (long long)o.a_column, (long long)w.k);
  if (o.type == QK_F32 && o.a_zero) return say(QK_BAD_ARGUMENT, "a of real numbers has no a_zero");
  if (const int32_t status = check_range(o.rows, o.m, 1, "rows", part.rows, say)) return status;
  if (const int32_t status = check_range(o.columns, w.n, kPanel, "columns", part.columns, say)) return status;
  g = {};
  const idx i = part.rows.begin, j = part.columns.begin;
  g.m = part.rows.end - i, g.n = part.columns.end - j, g.k = w.k;
  if (o.type == QK_F32) g.a_row = w.k, g.a_col = 1;
  else g.a_row = o.a_row, g.a_col = o.a_column;
  if (!query && o.type != QK_F32) g.a = static_cast<const uint8_t*>(o.a) + i * o.a_row;
  g.w_panel = padded(w.k, kPackedK) * kPanel;
  if (w.data) g.w = w.data + j / kPanel * g.w_panel, g.w_sums = w.sums + j;
  g.a_zero = o.a_zero ? o.a_zero + i : nullptr, g.w_zero = o.w_zero ? o.w_zero + j : nullptr;
  g.l1_bytes = cache_bytes(1), g.l2_bytes = cache_bytes(2);
  return QK_OK;
}

int32_t choose_row(int32_t kernel, const char* op, int32_t type, const Gemm& g, const Weights& w, Entry& entry,
                   const Say& say) {
  char types[16];
  snprintf(types, sizeof types, "%s%ss32", letters(type), w.is_signed ? "s8" : "u8");
  return choose(kernel, {op, types, "n16k4", g.m, g.n, g.k, nullptr}, entry, say);
}

// Of a block of the product, whatever of its pointers are there: what a row asks for may depend on that.
size_t most_scratch(const KernelRow& row, Gemm g, bool has_epilogue) {
  static constexpr Epilogue some = {};
  g.epilogue = has_epilogue ? &some : nullptr;
  const int32_t* const zeros[] = {nullptr, &some.zero};
  size_t most = 0;
  for (const int32_t* a_zero : zeros)
    for (const int32_t* w_zero : zeros) {
      g.a_zero = a_zero, g.w_zero = w_zero;
      const size_t bytes = row.scratch_bytes(g);
      if (bytes > most) most = bytes;
    }
  return most;
}

struct GemmCall {
  Gemm g;
  Part part;
  Entry entry;
  Room room;
};

int32_t read_gemm(const qk_gemm_args* args, bool query, GemmCall& c, const Say& say) {
  qk_gemm_args q;
  if (const int32_t status = read_struct(args, q, "qk_gemm_args", say)) return status;
  if (const int32_t status = read_packed(q.w, c.part.w, say)) return status;
  const Operands o = {q.m, q.a_type, q.a, q.a_row, q.a_column, q.a_zero, q.w_zero, q.rows, q.columns};
  if (const int32_t status = read_operands(o, false, query, c.g, c.part, say)) return status;
  if (!query && !q.out) return say(QK_NULL_POINTER, "out is NULL");
  if (q.out_row < c.part.w.n || !strides_fit(q.m, q.out_row, c.part.w.n, 1))
    return say(QK_BAD_ARGUMENT, "out_row is %lld, wanted at least n=%lld", (long long)q.out_row, (long long)c.part.w.n);
  if (const int32_t status = choose_row(q.kernel, "gemm", q.a_type, c.g, c.part.w, c.entry, say)) return status;
  c.g.out_row = q.out_row;
  if (!query) c.g.out = q.out + c.part.rows.begin * q.out_row + c.part.columns.begin;
  c.room = {lines(size_t(c.g.m + c.g.n) * 4), most_scratch(*c.entry.product, c.g, false)};
  return QK_OK;
}

struct LinearCall {
  Gemm g;
  Part part;
  Entry entry;
  Room room;
  Epilogue epilogue;
  const float* x;
  bool grouped;
  Int4 groups;  // in place of g, where they are grouped
};

// The weights of either kind; k and n of them.
int32_t read_weights(const qk_linear_args& q, LinearCall& c, int32_t& bits, const Say& say) {
  if (q.w && q.groups) return say(QK_BAD_ARGUMENT, "w and groups are both given, wanted one of them");
  c.grouped = q.groups != nullptr;
  if (!c.grouped) return read_packed(q.w, c.part.w, say);
  if (const int32_t status = read_groups(q.groups, c.groups, bits, say)) return status;
  if (q.w_zero) return say(QK_BAD_ARGUMENT, "w_zero is given, wanted NULL: groups have zero points of their own");
  if (q.a_zero && !c.groups.w_sums)
    return say(QK_BAD_ARGUMENT, "a_zero is given, and the groups were packed without sums");
  c.part.w = {nullptr, nullptr, c.groups.k, c.groups.n, false};
  return QK_OK;
}

// Of a kernel that was named, whether it rounds real rows to bfloat16.
bool wants_bf16(int32_t kernel) {
  if (kernel < 0 || kernel >= entry_count()) return false;
  char types[16];
  entry_at(kernel).types(types);
  return strncmp(types, "bf16", 4) == 0;
}

// c.g's operands beside c.groups' weights; the kernel, and what it asks for. real: rows stay what they are (A11).
int32_t set_groups(const qk_linear_args& q, int32_t bits, bool real, LinearCall& c, const Say& say) {
  const bool floats = q.a_type == QK_F32 && !real;
  Int4& g = c.groups = groups_of_columns(c.groups, c.part.columns.begin);
  g.m = c.g.m, g.n = c.g.n, g.a = c.g.a, g.a_row = c.g.a_row, g.a_col = c.g.a_col, g.a_zero = c.g.a_zero;
  g.l1_bytes = c.g.l1_bytes, g.l2_bytes = c.g.l2_bytes;
  char types[16], layout[40];
  snprintf(types, sizeof types, "%su%df32", real && wants_bf16(q.kernel) ? "bf16" : letters(q.a_type), bits);
  const int length = snprintf(layout, sizeof layout, "n16k4x%d", 8 / bits);
  if (g.groups() > 1) snprintf(layout + length, sizeof layout - size_t(length), "/%lld", (long long)g.group);
  const char* const op = real ? "weight_only" : "linear";
  if (const int32_t status = choose(q.kernel, {op, types, layout, g.m, g.n, g.k, nullptr}, c.entry, say)) return status;
  const idx at_once = floats ? quantized_rows(g.m, g.k) : g.m;
  c.room = {floats ? lines(quantized_rows_bytes(g.m, g.k)) : 0, 0};
  static constexpr int32_t kZero = 0;
  static constexpr Epilogue kSome = {};
  const int32_t* const zeros[] = {nullptr, &kZero};
  for (const idx rows : {g.m, at_once, g.m % at_once})
    for (const int32_t* a_zero : zeros) {
      Int4 some = g;
      some.m = rows, some.a_zero = a_zero, some.epilogue = &kSome;
      const size_t bytes = rows > 0 ? c.entry.int4->scratch_bytes(some) : 0;
      if (bytes > c.room.task) c.room.task = bytes;
    }
  return QK_OK;
}

int32_t read_product(const qk_linear_args* args, bool real, bool query, LinearCall& c, const Say& say) {
  qk_linear_args q;
  if (const int32_t status = read_struct(args, q, "qk_linear_args", say)) return status;
  int32_t bits = 8;
  if (real && (!q.groups || q.a_type != QK_F32))
    return say(q.groups ? QK_BAD_ARGUMENT : QK_NULL_POINTER, "%s, wanted rows of QK_F32 times groups of weights",
               q.groups ? "a_type is not QK_F32" : "groups is NULL");
  if (const int32_t status = read_weights(q, c, bits, say)) return status;
  const Operands o = {q.m, q.a_type, q.a, q.a_row, q.a_column, q.a_zero, q.w_zero, q.rows, q.columns};
  if (const int32_t status = read_operands(o, true, query, c.g, c.part, say)) return status;
  const bool floats = q.a_type == QK_F32;
  Epilogue whole;
  if (const int32_t status =
          read_epilogue(q.epilogue, {idx(q.m), c.part.w.n, floats, false, c.grouped, query}, whole, say))
    return status;
  c.epilogue = query ? whole : epilogue_of_columns(epilogue_from(whole, c.part.rows.begin), c.part.columns.begin);
  c.x = floats && !query ? static_cast<const float*>(q.a) + c.part.rows.begin * c.part.w.k : nullptr;
  if (c.grouped) return set_groups(q, bits, real, c, say);
  if (const int32_t status = choose_row(q.kernel, "linear", q.a_type, c.g, c.part.w, c.entry, say)) return status;
  // zero points gathered, codes of real numbers or the folded zero point, the epilogue's zero points
  const size_t codes = floats ? quantized_rows_bytes(c.g.m, c.g.k) : size_t(c.g.n) * 4;
  c.room = {lines(size_t(c.g.m + c.g.n) * 4) + lines(codes) + spread_bytes(c.g.n),
            most_scratch(*c.entry.product, c.g, true)};
  const idx at_once = quantized_rows(c.g.m, c.g.k);  // of real numbers: products of so many rows, and of the rest
  for (const idx rows : {at_once, c.g.m % at_once})
    if (floats && rows > 0) {
      Gemm some = c.g;
      some.m = rows;
      const size_t bytes = most_scratch(*c.entry.product, some, true);
      if (bytes > c.room.task) c.room.task = bytes;
    }
  return QK_OK;
}

int32_t read_linear(const qk_linear_args* args, bool query, LinearCall& c, const Say& say) {
  return read_product(args, false, query, c, say);
}

int32_t read_weight_only(const qk_linear_args* args, bool query, LinearCall& c, const Say& say) {
  return read_product(args, true, query, c, say);
}

int32_t run_linear_call(int32_t (*read)(const qk_linear_args*, bool, LinearCall&, const Say&),
                        const qk_linear_args* args, const qk_host* host, const Say& say) {
  LinearCall c;
  if (const int32_t status = read(args, false, c, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, c.room, say)) return status;
  const bool good = c.grouped ? run_int4(*c.entry.int4, c.groups, c.epilogue, c.x, hosted.tasks(), false)
                              : spread_zero(c.epilogue, c.g.n) &&
                                    run_linear(*c.entry.product, c.g, c.epilogue, c.x, hosted.tasks(), false);
  return good ? QK_OK : say(QK_NO_MEMORY, "no memory for scratch");
}

}  // namespace
}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_gemm_workspace(const qk_gemm_args* args, int32_t tasks, size_t* bytes, char* message, size_t message_bytes) {
  return workspace(read_gemm, args, tasks, bytes, message, message_bytes);
}

int32_t qk_gemm(const qk_gemm_args* args, const qk_host* host, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  GemmCall c;
  if (const int32_t status = read_gemm(args, false, c, say)) return status;
  Hosted hosted;
  if (const int32_t status = hosted.begin(host, c.room, say)) return status;
  qk::Job job = {};
  job.one = c.g;
  job.a_zero_step = job.w_zero_step = 4;
  return run(*c.entry.product, job, hosted.tasks()) ? QK_OK : say(QK_NO_MEMORY, "no memory for scratch");
}

int32_t qk_linear_workspace(const qk_linear_args* args, int32_t tasks, size_t* bytes, char* message,
                            size_t message_bytes) {
  return workspace(read_linear, args, tasks, bytes, message, message_bytes);
}

int32_t qk_linear(const qk_linear_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_linear_call(read_linear, args, host, say_to(message, message_bytes));
}

int32_t qk_weight_only_workspace(const qk_linear_args* args, int32_t tasks, size_t* bytes, char* message,
                                 size_t message_bytes) {
  return workspace(read_weight_only, args, tasks, bytes, message, message_bytes);
}

int32_t qk_weight_only(const qk_linear_args* args, const qk_host* host, char* message, size_t message_bytes) {
  return run_linear_call(read_weight_only, args, host, say_to(message, message_bytes));
}

}  // extern "C"
