// The list, and what each kernel says to a problem: the judges of qkernels/backends/native*.py once more, on the same
// rows and with the same constants. tests/test_capi_kernels.py holds the two to one opinion.
#include "kernels.h"

#include <stdlib.h>

#include "../cpu/features.h"

namespace qk::capi {
namespace {

constexpr double kPackBytesUs = 2e4;                   // plain weights packed in a microsecond
constexpr double kQuantizedUs = 3e3;                   // float activations quantized in a microsecond, of 8-bit weights
constexpr double kQuantizedInt4Us = 1e4;               // of 4-bit ones
constexpr double kGatherBytesUs = 8e3;                 // windows copied side by side in a microsecond
constexpr const char* kGroupedIsa = "x86_avx512vnni";  // whose row has kernels for small groups
constexpr double kGroupedGops = 400;
constexpr double kElementwiseCallUs = 1, kElementwiseByteNs = 0.1, kDepthwiseCallUs = 0.5;
constexpr double kPoolCallUs = 2, kTopkBytesUs = 1e4, kTopkScoresUs = 4e3;
constexpr int64_t kFewGroups = 64, kFewRows = 8, kLongestBf16 = 1 << 15;

bool same(const char* x, const char* y) { return strcmp(x, y) == 0; }

bool starts(const char* text, const char* with) { return strncmp(text, with, strlen(with)) == 0; }

double of(idx size) { return double(size); }

// The further types that a row of op linear takes: floats that become its signed codes, bfloat16 whose bound is wider
// than that of its float32. Null: none.
const char* also_for(const char* types) {
  return starts(types, "s8") ? "f32" : starts(types, "f32") ? "bf16" : nullptr;
}

const char* also_of(const KernelRow& row) { return also_for(row.types); }
const char* also_of(const Int4Row& row) {  // one that has bfloat16 of its own
  return starts(row.types, "f32") && same(row.isa, "x86_amxbf16") ? nullptr : also_for(row.types);
}

template <class List>
int with_also(const List& list) {
  int count = 0;
  for (int i = 0; i < list.count; ++i) count += also_of(list.rows[i]) ? 2 : 1;
  return count;
}

// Number `index` of a list in which rows of further types stand twice.
template <class List>
const auto* row_of(const List& list, int index, bool& also) {
  for (int i = 0;; ++i) {
    also = false;
    if (index-- == 0) return &list.rows[i];
    if (!also_of(list.rows[i])) continue;
    also = true;
    if (index-- == 0) return &list.rows[i];
  }
}

double product_us(const KernelRow& row, idx m, idx n, idx k) {
  const idx rows = m > row.mr ? padded(m, row.mr) : m;
  return 2e-3 * of(rows) * of(padded(n, row.nr)) * of(padded(k, row.k_step)) / row.gops;
}

int32_t not_here(const char* isa, const Say& say) {
  return cpu_runs(isa) ? QK_OK : say(QK_NO_KERNEL, "this CPU lacks %s", isa);
}

int32_t judge_product(const Entry& entry, const Problem& p, double& us, const Say& say) {
  const KernelRow& row = *entry.product;
  if (*p.layout && !same(p.layout, "n16k4")) return say(QK_NO_KERNEL, "reads layout n16k4, not %s", p.layout);
  if (const int32_t status = not_here(row.isa, say)) return status;
  if (p.m < row.min_m) return say(QK_NO_KERNEL, "m=%lld is below %lld", (long long)p.m, (long long)row.min_m);
  us = row.call_us + product_us(row, p.m, p.n, p.k);
  if (!*p.layout) us += of(p.n) * of(p.k) / kPackBytesUs;
  if (entry.also) us += of(p.m) * of(p.k) / kQuantizedUs;
  return QK_OK;
}

int32_t judge_conv(const KernelRow& row, const Problem& p, double& us, const Say& say) {
  if (*p.layout && !same(p.layout, "n16k4")) return say(QK_NO_KERNEL, "reads layout n16k4, not %s", p.layout);
  if (const int32_t status = not_here(row.isa, say)) return status;
  if (p.m < row.min_m)
    return say(QK_NO_KERNEL, "%lld output pixels are fewer than %lld", (long long)p.m, (long long)row.min_m);
  const ConvShape& s = *p.conv;
  if (strcmp(row.isa, kGroupedIsa) == 0 && is_small_groups(s)) {
    us = row.call_us + 2e-3 * of(p.m) * of(s.filters) * of(p.k) / kGroupedGops;
    return QK_OK;
  }
  const idx matrices = s.groups / merged_groups(s.groups, s.filters), taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
  const idx k = taps * (s.channels / matrices);
  const double copies = taps > 1 ? of(p.m) * of(k) / kGatherBytesUs : 0;
  us = row.call_us + of(matrices) * (product_us(row, p.m, s.filters / matrices, k) + copies);
  return QK_OK;
}

int32_t judge_depthwise(const DepthwiseRow& row, const Problem& p, double& us, const Say& say) {
  if (!is_depthwise(*p.conv))
    return say(QK_NO_KERNEL, "is for depthwise convolutions of flat images: one filter a channel");
  if (*p.layout && !same(p.layout, "c4t4")) return say(QK_NO_KERNEL, "reads layout c4t4, not %s", p.layout);
  if (const int32_t status = not_here(row.isa, say)) return status;
  us = kDepthwiseCallUs + 2e-3 * of(p.m) * of(padded(p.conv->channels, kPanel)) * of(p.k) / row.gops;
  return QK_OK;
}

// "n16k4x2/32" → groups of 32; "n16k4x2" → one group. 0: no layout of these weights.
int64_t groups_in(const Problem& p) {
  const char* const slash = strchr(p.layout, '/');
  const size_t length = slash ? size_t(slash - p.layout) : strlen(p.layout);
  if (length != 7 || strncmp(p.layout, "n16k4x", 6) || !strchr("124", p.layout[6])) return 0;
  if (!slash) return 1;
  const long long group = atoll(slash + 1);
  return group > 0 ? ceil_div(p.k, group) : 0;
}

int32_t judge_int4(const Entry& entry, const Problem& p, double& us, const Say& say) {
  const Int4Row& row = *entry.int4;
  const int64_t groups = groups_in(p);
  if (groups == 0)
    return say(QK_NO_KERNEL, "reads weights in groups of linear, not %s of layout %s", p.op,
               *p.layout ? p.layout : "plain");
  if (const int32_t status = not_here(row.isa, say)) return status;
  if (starts(row.types, "bf16") && p.k > kLongestBf16)
    return say(QK_NO_KERNEL, "k=%lld is above %lld", (long long)p.k, (long long)kLongestBf16);
  const bool linear = !row.of_floats;
  const bool few = linear && row.min_m > 1 && double(p.k) < double(kFewGroups) * double(groups);
  const int64_t least = few ? kFewRows : row.min_m;
  if (p.m < least)
    return say(QK_NO_KERNEL, "m=%lld is below %lld%s", (long long)p.m, (long long)least,
               least > row.min_m ? " with groups below 64" : "");
  const double weights = of(padded(p.n, kPanel)) * of(padded(p.k, kPackedK));
  const double quantizing = linear && starts(p.types, "f32") ? of(p.m) * of(p.k) / kQuantizedInt4Us : 0;
  const double reading = 1e-3 * weights * row.bits / 8 / row.gb_s;
  const double computing = 2e-3 * of(p.m) * weights * (few ? 2 : 1) / row.gops;
  us = row.call_us + (reading > computing ? reading + computing / 2 : computing + reading / 2) + quantizing;
  return QK_OK;
}

int32_t judge_elementwise(const ElementwiseRow& row, const Problem& p, double& us, const Say& say) {
  if (const int32_t status = not_here(row.isa, say)) return status;
  us = kElementwiseCallUs + 1e-3 * of(p.m) * of(p.n) * (row.ns + kElementwiseByteNs * (row.in_bytes + row.out_bytes));
  return QK_OK;
}

int32_t judge_pool(const PoolRow& row, const Problem& p, double& us, const Say& say) {
  if (const int32_t status = not_here(row.isa, say)) return status;
  us = kPoolCallUs + 1e-3 * of(p.m) * of(p.n) * of(p.k) * row.ns;
  return QK_OK;
}

int32_t judge_topk(const KernelRow& row, const Problem& p, double& us, const Say& say) {
  if (const int32_t status = not_here(row.isa, say)) return status;
  const idx columns = padded(p.n, kPanel);
  const double macs = of(padded(p.m, row.mr)) * of(padded(columns, row.nr)) * of(padded(p.k, row.k_step));
  us = row.call_us + 2e-3 * macs / row.gops + of(p.m) * of(p.k) / kTopkBytesUs + of(p.m) * of(columns) / kTopkScoresUs;
  return QK_OK;
}

bool good_text(const char* text, size_t most) { return text && strnlen(text, most) < most; }

// The caller's problem, its numbers within bounds, its texts short.
int32_t read_problem(const qk_problem* given, Problem& p, ConvShape& shape, const Say& say) {
  qk_problem q;
  if (const int32_t status = read_struct(given, q, "qk_problem", say)) return status;
  if (!q.op || !q.types) return say(QK_NULL_POINTER, "qk_problem.%s is NULL", q.op ? "types" : "op");
  if (!good_text(q.op, 24) || !good_text(q.types, 16) || (q.layout && !good_text(q.layout, 24)))
    return say(QK_BAD_ARGUMENT, "qk_problem has a text that is no op, no types or no layout: it is too long");
  for (const int64_t size : {q.m, q.n, q.k})
    if (size < 1 || size >= kMost)
      return say(QK_BAD_ARGUMENT, "qk_problem has a size of %lld, wanted 1 … 2^31 − 1", (long long)size);
  p = {q.op, q.types, q.layout ? q.layout : "", q.m, q.n, q.k, nullptr};
  if (!same(q.op, "conv")) return QK_OK;
  if (!q.conv) return say(QK_NULL_POINTER, "qk_problem.conv is NULL, wanted the shape of the convolution");
  if (const int32_t status = check_shape(*q.conv, say)) return status;
  shape = shape_of(*q.conv);
  p.conv = &shape;
  return QK_OK;
}

}  // namespace

const char* Entry::isa() const {
  switch (kind) {
    case Kind::depthwise:
      return depthwise->isa;
    case Kind::elementwise:
      return elementwise->isa;
    case Kind::int4:
      return int4->isa;
    case Kind::pool:
      return pool->isa;
    default:
      return product->isa;
  }
}

const char* Entry::op() const {
  switch (kind) {
    case Kind::gemm:
      return "gemm";
    case Kind::linear:
      return "linear";
    case Kind::elementwise:
      return elementwise->op;
    case Kind::int4:
      return int4->of_floats ? "weight_only" : "linear";
    case Kind::pool:
      return pool->op;
    case Kind::topk:
      return "topk";
    default:
      return "conv";
  }
}

void Entry::types(char (&to)[16]) const {
  const char* const own = kind == Kind::depthwise     ? depthwise->types
                          : kind == Kind::elementwise ? elementwise->types
                          : kind == Kind::int4        ? int4->types
                          : kind == Kind::pool        ? pool->types
                                                      : product->types;
  if (also) snprintf(to, sizeof to, "%s%s", also_for(own), own + (starts(own, "s8") ? 2 : 3));
  else snprintf(to, sizeof to, "%s", own);
}

void Entry::name(char (&to)[64]) const {
  char own[16];
  types(own);
  if (kind == Kind::depthwise) snprintf(to, sizeof to, "%s", depthwise->name);
  else if (kind == Kind::elementwise || kind == Kind::pool) snprintf(to, sizeof to, "%s_%s_%s", op(), own, isa());
  else {  // <op>_<types> of the row is replaced, what follows stays
    const char* const name = kind == Kind::int4 ? int4->name : product->name;
    const char* const row_types = kind == Kind::int4 ? int4->types : product->types;
    snprintf(to, sizeof to, "%s_%s%s", op(), own, strstr(name, row_types) + strlen(row_types));
  }
}

const char* Entry::layout() const {
  switch (kind) {
    case Kind::depthwise:
      return "c4t4";
    case Kind::elementwise:
    case Kind::pool:
    case Kind::topk:
      return "";
    case Kind::int4:
      return int4->bits == 8 ? "n16k4x1" : int4->bits == 4 ? "n16k4x2" : "n16k4x4";
    default:
      return "n16k4";
  }
}

int entry_count() {
  const RowList rows = all_rows();
  return rows.count * 3 + with_also(rows) + depthwise_rows().count + elementwise_count() + with_also(all_int4_rows()) +
         pool_count();
}

Entry entry_at(int index) {
  const RowList rows = all_rows();
  Entry e = {};
  if (index < rows.count) return e.kind = Kind::gemm, e.product = &rows.rows[index], e;
  index -= rows.count;
  if (index < with_also(rows)) return e.kind = Kind::linear, e.product = row_of(rows, index, e.also), e;
  index -= with_also(rows);
  if (index < rows.count) return e.kind = Kind::conv, e.product = &rows.rows[index], e;
  index -= rows.count;
  const DepthwiseList depthwise = depthwise_rows();
  if (index < depthwise.count) return e.kind = Kind::depthwise, e.depthwise = &depthwise.rows[index], e;
  index -= depthwise.count;
  if (index < elementwise_count()) return e.kind = Kind::elementwise, e.elementwise = &elementwise_row(index), e;
  index -= elementwise_count();
  if (index < with_also(all_int4_rows()))
    return e.kind = Kind::int4, e.int4 = row_of(all_int4_rows(), index, e.also), e;
  index -= with_also(all_int4_rows());
  if (index < pool_count()) return e.kind = Kind::pool, e.pool = &pool_row(index), e;
  index -= pool_count();
  return e.kind = Kind::topk, e.product = &rows.rows[index], e;
}

idx merged_groups(idx groups, idx filters) {
  const idx least = ceil_div(kPanel, filters / groups);
  idx large = groups;  // the smallest divisor that is not below `least`, beyond the square root
  for (idx f = 1; f * f <= groups; ++f) {
    if (groups % f) continue;
    if (f >= least && f < groups) return f;
    if (groups / f >= least) large = groups / f;
  }
  return large;
}

bool is_depthwise(const ConvShape& s) {
  return s.groups == s.channels && s.filters == s.channels && s.filters > 1 && s.kernel[0] == 1 && s.size[0] == 1 &&
         s.out[0] == 1 && s.before[0] == 0;
}

bool is_small_groups(const ConvShape& s) {
  const idx depth = s.channels / s.groups, per = s.filters / s.groups;
  return s.groups > 1 && (depth == 4 || depth == 8) && max_of(kPanel / per, 1) * depth <= 64 &&
         (kPanel % per == 0 || per % kPanel == 0);
}

int32_t judge(const Entry& entry, const Problem& p, double& us, const Say& say) {
  char types[16];
  entry.types(types);
  if (!same(p.op, entry.op()) || !same(p.types, types)) return say(QK_NO_KERNEL, "is for %s %s", entry.op(), types);
  switch (entry.kind) {
    case Kind::conv:
      return judge_conv(*entry.product, p, us, say);
    case Kind::depthwise:
      return judge_depthwise(*entry.depthwise, p, us, say);
    case Kind::elementwise:
      return judge_elementwise(*entry.elementwise, p, us, say);
    case Kind::int4:
      return judge_int4(entry, p, us, say);
    case Kind::pool:
      return judge_pool(*entry.pool, p, us, say);
    case Kind::topk:
      return judge_topk(*entry.product, p, us, say);
    default:
      return judge_product(entry, p, us, say);
  }
}

int32_t choose(int32_t wanted, const Problem& p, Entry& entry, const Say& say, int32_t* index) {
  double us = 0, least = 0;
  if (wanted != QK_ANY_KERNEL) {
    if (wanted < 0 || wanted >= entry_count())
      return say(QK_NO_KERNEL, "kernel %d does not exist: there are %d", wanted, entry_count());
    entry = entry_at(wanted);
    return judge(entry, p, us, say);
  }
  const Say silent = {nullptr, 0};
  bool found = false;
  for (int i = 0; i < entry_count(); ++i) {
    const Entry one = entry_at(i);
    if (!same(one.op(), p.op) || judge(one, p, us, silent) != QK_OK || (found && us >= least)) continue;
    entry = one, least = us, found = true;
    if (index) *index = i;
  }
  return found ? QK_OK
               : say(QK_NO_KERNEL, "no kernel runs %s %s with layout %s; qk_judge says why each one does not", p.op,
                     p.types, *p.layout ? p.layout : "plain");
}

}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_kernel_count(void) { return entry_count(); }

int32_t qk_kernel(int32_t index, qk_kernel_info* info, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_room(info, "qk_kernel_info", say)) return status;
  if (index < 0 || index >= entry_count())
    return say(QK_NO_KERNEL, "kernel %d does not exist: there are %d", index, entry_count());
  const Entry entry = entry_at(index);
  entry.name(info->name);
  entry.types(info->types);
  snprintf(info->op, sizeof info->op, "%s", entry.op());
  snprintf(info->isa, sizeof info->isa, "%s", entry.isa());
  snprintf(info->layout, sizeof info->layout, "%s", entry.layout());
  info->runs_here = qk::cpu_runs(entry.isa());
  return QK_OK;
}

int32_t qk_judge(const qk_problem* problem, int32_t kernel, double* microseconds, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  Problem p;
  qk::ConvShape shape;
  if (const int32_t status = read_problem(problem, p, shape, say)) return status;
  if (kernel < 0 || kernel >= entry_count())
    return say(QK_NO_KERNEL, "kernel %d does not exist: there are %d", kernel, entry_count());
  double us = 0;
  const int32_t status = judge(entry_at(kernel), p, us, say);
  if (status == QK_OK && microseconds) *microseconds = us;
  return status;
}

int32_t qk_choose(const qk_problem* problem, int32_t* kernel, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  Problem p;
  qk::ConvShape shape;
  Entry entry;
  if (!kernel) return say(QK_NULL_POINTER, "kernel is NULL");
  if (const int32_t status = read_problem(problem, p, shape, say)) return status;
  return choose(QK_ANY_KERNEL, p, entry, say, kernel);
}

}  // extern "C"
