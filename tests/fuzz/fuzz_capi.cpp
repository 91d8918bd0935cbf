// The C API under a fuzzer: every function with sizes, strides, types, kernels, ranges, struct sizes and NULLs as the
// bytes say. A call may refuse; it may neither crash nor touch memory that is not its own (AddressSanitizer, UBSan).
//
// Pointers are NULL or lead to as much memory as the arguments themselves promise, behind which nothing may be read; a
// call that promises more than kMost runs as a workspace query alone. `make fuzz` builds and runs this with libFuzzer;
// without it (QK_REPLAY) the program replays inputs made from a seed, or files: tests/test_capi_fuzz.py.
#include <stdio.h>

#include "fuzz_input.h"

namespace {

struct Session {
  Input& in;
  Memory memory;
  char message[160];

  explicit Session(Input& input) : in(input), memory(input) {}

  char* text() { return in.once_in(8) ? nullptr : message; }
  size_t text_bytes() { return in.once_in(8) ? size_t(in.byte() % 160) : sizeof message; }

  int32_t kernel() { return in.once_in(3) ? in.small(0, 255) : QK_ANY_KERNEL; }
  qk_range range() {
    if (!in.once_in(4)) return {0, 0};
    return {in.once_in(2) ? 16 * int64_t(in.small(0, 3)) : in.number(), in.number()};
  }

  qk_host* host(size_t wanted, int32_t tasks) {
    qk_host h = {};
    h.size = in.size_of(sizeof h);
    h.flags = in.once_in(8) ? uint32_t(in.byte() % 4) & ~uint32_t(QK_OWN_THREADS) : 0;
    if (in.once_in(128)) h.flags = uint32_t(in.number());
    h.flags &= ~uint32_t(QK_OWN_THREADS);  // threads of ours would make runs differ
    h.tasks = in.once_in(32) ? in.small(-2, 120) : tasks;
    h.parallel_for = in.once_in(4) ? nullptr : pool;
    h.workspace_bytes = in.once_in(12) ? wanted / 2 : wanted;
    h.workspace = in.once_in(64) ? nullptr : memory.values<uint8_t>(double(h.workspace_bytes), false);
    if (!h.workspace) h.workspace_bytes = in.once_in(2) ? 0 : h.workspace_bytes;
    return in.once_in(64) ? nullptr : memory.extended(h);
  }

  double reach(double rows, double row, double columns, double column) {
    return rows < 1 || columns < 1 || row < 0 || column < 0 ? -1 : (rows - 1) * row + (columns - 1) * column + 1;
  }

  qk_packed* packed(int64_t k, int64_t n) {
    qk_packed p = {};
    p.size = in.size_of(sizeof p);
    const int32_t type = in.once_in(2) ? QK_U8 : QK_S8;
    const int64_t row = in.once_in(2) ? n : 1, column = row == 1 ? k : 1;
    size_t bytes = 0;
    void* to = nullptr;
    if (qk_pack_bytes(k, n, &bytes, text(), text_bytes()) == QK_OK && double(bytes) <= 16 * kMost)
      to = memory.lines(bytes);
    const void* const from = memory.block(double(k) * double(n));
    if (!memory.possible || !to) return nullptr;
    if (in.once_in(32)) bytes = size_t(in.number());
    const int32_t status =
        qk_pack(k, n, in.once_in(64) ? in.small(0, 9) : type, from, row, column, to, bytes, &p, text(), text_bytes());
    if (status != QK_OK) return nullptr;
    return in.once_in(64) ? nullptr : memory.extended(p);
  }

  qk_packed_groups* groups(int64_t k, int64_t n) {
    qk_packed_groups p = {};
    p.size = in.size_of(sizeof p);
    const int32_t bits = in.once_in(32) ? in.small(-2, 9) : in.once_in(3) ? 2 : in.once_in(3) ? 8 : 4;
    const int64_t group = in.once_in(16) ? in.number() : 16 * int64_t(in.small(1, 5));
    const int32_t sums = in.small(0, 1);
    const double count = group > 0 ? (double(k) + double(group)) / double(group) * double(n) : -1;
    const uint8_t* const zeros = in.once_in(3) ? memory.values<uint8_t>(count) : nullptr;
    const float* const scales = memory.values<float>(count);
    size_t bytes = 0;
    void* to = nullptr;
    if (qk_pack_groups_bytes(k, n, group, bits, zeros != nullptr, sums, &bytes, text(), text_bytes()) == QK_OK &&
        double(bytes) <= 16 * kMost)
      to = memory.lines(bytes);
    uint8_t* const from = static_cast<uint8_t*>(memory.block(double(k) * double(n)));
    if (!memory.possible || !to) return nullptr;
    if (from && !in.once_in(16))
      for (int64_t i = 0; i < k * n; ++i) from[i] &= uint8_t((1 << (bits & 15)) - 1);
    if (zeros && !in.once_in(16))
      for (int64_t i = 0; i < int64_t(count); ++i) const_cast<uint8_t*>(zeros)[i] &= 3;
    const int32_t status = qk_pack_groups(k, n, group, bits, from, n, 1, scales, zeros, in.small(0, 3), sums, to, bytes,
                                          &p, text(), text_bytes());
    return status == QK_OK ? memory.extended(p) : nullptr;
  }

  qk_epilogue* epilogue(int64_t m, int64_t n, int32_t type) {
    qk_epilogue e = {};
    e.size = in.size_of(sizeof e);
    e.type = in.once_in(32) ? in.small(-2, 9) : type;
    e.rounding = in.small(0, 4);
    e.out_row = in.once_in(4) && n < (1 << 20) ? n + in.byte() % 6 : 0;
    if (in.once_in(64)) e.out_row = in.number();
    e.out = memory.values<int32_t>(reach(double(m), double(e.out_row ? e.out_row : n), double(n), 1));
    const auto rows = [&] { return in.once_in(4) ? n : int64_t(0); };
    e.bias_row = rows();
    if (in.once_in(2)) e.bias = memory.values<int32_t>(reach(double(m), double(e.bias_row), double(n), 1));
    e.a_scale_step = in.small(0, 1);
    e.a_scale = memory.values<float>(double(m));
    e.w_scale = memory.values<float>(double(n));
    if (in.once_in(2)) e.float_bias = memory.values<float>(double(n));
    e.curve = in.small(0, 6), e.clamps = in.small(0, 1), e.clamp_low = -1, e.clamp_high = float(in.small(-2, 5));
    e.m_row = rows();
    const double count = reach(double(m), double(e.m_row), double(n), 1);
    e.m = memory.values<float>(count), e.m64 = memory.values<double>(count);
    e.q = memory.values<int32_t>(count), e.e = memory.values<int32_t>(count);
    e.zero = in.small(0, 9), e.low = in.small(0, 5), e.high = in.small(4, 120);
    static const int32_t residuals[] = {QK_NO_RESIDUAL, QK_NO_RESIDUAL, QK_F32, QK_S8, QK_U8};
    e.residual_type = in.once_in(64) ? in.small(-3, 9) : residuals[in.byte() % 5];
    e.residual_row = in.once_in(4) && n < (1 << 20) ? n + 3 : 0;
    if (e.residual_type != QK_NO_RESIDUAL)
      e.residual = memory.values<float>(reach(double(m), double(e.residual_row ? e.residual_row : n), double(n), 1));
    e.residual_scale = 0.5f, e.residual_zero = in.small(-3, 7);
    return in.once_in(64) ? nullptr : memory.extended(e);
  }

  template <class Args>
  void finish(const Args& args, int32_t (*workspace)(const Args*, int32_t, size_t*, char*, size_t),
              int32_t (*run)(const Args*, const qk_host*, char*, size_t)) {
    const Args* const given = in.once_in(64) ? nullptr : memory.extended(args);
    const int32_t tasks = in.small(0, 5);
    size_t bytes = 0;
    const int32_t status = noted(workspace(given, tasks, &bytes, text(), text_bytes()));
    if (!memory.possible || (status == QK_OK && double(bytes) > 64 * kMost)) return;
    if (status != QK_OK) bytes = 0;
    const qk_host* const h = bytes <= kMost ? host(bytes, tasks) : big_host(bytes, tasks);
    noted(run(given, h, text(), text_bytes()));
  }

  qk_host* big_host(size_t wanted, int32_t tasks) {
    qk_host h = {};
    h.size = sizeof h, h.tasks = tasks, h.parallel_for = pool;
    h.workspace = memory.lines(wanted), h.workspace_bytes = wanted;
    return memory.extended(h);
  }

  void gemm() {
    qk_gemm_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = kernel();
    a.m = in.number();
    const int64_t k = in.number(), n = in.number();
    a.a_type = in.once_in(32) ? in.small(-1, 9) : in.small(QK_S8, QK_U8);
    a.a_row = in.once_in(16) ? in.number() : k, a.a_column = in.once_in(16) ? in.number() : 1;
    a.a = memory.block(reach(double(a.m), double(a.a_row), double(k), double(a.a_column)));
    a.w = packed(k, n);
    a.out_row = in.once_in(16) ? in.number() : n;
    a.out = memory.values<int32_t>(reach(double(a.m), double(a.out_row), double(n), 1));
    if (in.once_in(3)) a.a_zero = memory.values<int32_t>(double(a.m));
    if (in.once_in(3)) a.w_zero = memory.values<int32_t>(double(n));
    a.rows = range(), a.columns = range();
    limit(double(a.m) * double(n) * double(k));
    finish(a, qk_gemm_workspace, qk_gemm);
  }

  void linear() {
    qk_linear_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = kernel();
    a.m = in.number();
    const int64_t k = in.number(), n = in.number();
    static const int32_t types[] = {QK_S8, QK_U8, QK_F32};
    a.a_type = in.once_in(32) ? in.small(-1, 9) : types[in.byte() % 3];
    a.a_row = in.once_in(16) ? in.number() : k, a.a_column = in.once_in(16) ? in.number() : 1;
    const double count = reach(double(a.m), double(a.a_row), double(k), double(a.a_column));
    if (a.a_type == QK_F32) a.a = memory.values<float>(count);
    else a.a = memory.block(count);
    const bool grouped = in.once_in(3);
    if (grouped) a.groups = groups(k, n);
    if (!grouped || in.once_in(32)) a.w = packed(k, n);
    if (in.once_in(3)) a.a_zero = memory.values<int32_t>(double(a.m));
    if (in.once_in(grouped ? 32 : 3)) a.w_zero = memory.values<int32_t>(double(n));
    a.epilogue = epilogue(a.m, n, grouped || a.a_type == QK_F32 ? in.small(QK_F32, QK_BF16) : in.small(QK_S32, QK_U16));
    a.rows = range(), a.columns = range();
    limit(double(a.m) * double(n) * double(k));
    if (grouped && in.once_in(2)) finish(a, qk_weight_only_workspace, qk_weight_only);
    else finish(a, qk_linear_workspace, qk_linear);
  }

  void limit(double products) {
    if (!(products >= 0 && products <= 64 * kMost)) memory.possible = false;
  }

  qk_conv_shape shape() {
    qk_conv_shape s = {};
    const bool depthwise = in.once_in(3);
    s.batch = in.small(1, 2), s.groups = in.small(1, 4);
    s.channels = s.groups * in.small(1, 5), s.filters = s.groups * in.small(1, 5);
    if (depthwise) s.groups = s.filters = s.channels;
    if (in.once_in(32)) s.channels = in.number();
    if (in.once_in(32)) s.filters = in.number();
    for (int axis = 0; axis < 3; ++axis) {
      const bool flat = axis == 0 && !in.once_in(6);
      s.size[axis] = flat ? 1 : in.small(1, 7), s.kernel[axis] = flat ? 1 : in.small(1, 4);
      s.stride[axis] = in.small(1, 3), s.dilation[axis] = in.small(1, 2);
      s.before[axis] = flat ? 0 : in.small(-2, 3), s.out[axis] = flat ? 1 : in.small(1, 7);
      if (in.once_in(48)) s.size[axis] = in.number();
      if (in.once_in(48)) s.out[axis] = in.number();
      if (in.once_in(48)) s.before[axis] = in.number();
      if (in.once_in(48)) s.stride[axis] = in.number();
      if (in.once_in(48)) s.kernel[axis] = in.number();
      if (in.once_in(48)) s.dilation[axis] = in.number();
    }
    return s;
  }

  void conv() {
    qk_conv_args a = {};
    const qk_conv_shape s = shape();
    const double taps = double(s.kernel[0]) * double(s.kernel[1]) * double(s.kernel[2]);
    const double pixels = double(s.batch) * double(s.out[0]) * double(s.out[1]) * double(s.out[2]);
    a.size = in.size_of(sizeof a), a.kernel = kernel();
    a.x_type = in.once_in(32) ? in.small(-1, 9) : in.small(QK_S8, QK_U8);
    a.shape = in.once_in(64) ? nullptr : &s;
    a.x =
        memory.block(double(s.batch) * double(s.size[0]) * double(s.size[1]) * double(s.size[2]) * double(s.channels));
    a.x_zero = in.small(0, 7);
    qk_packed_conv p = {};
    p.size = in.size_of(sizeof p);
    const int32_t* const w_zero = in.once_in(3) ? memory.values<int32_t>(double(s.filters)) : nullptr;
    size_t bytes = 0;
    void* to = nullptr;
    if (qk_conv_pack_bytes(&s, &bytes, text(), text_bytes()) == QK_OK && double(bytes) <= 16 * kMost)
      to = memory.lines(bytes);
    const double depth = s.groups ? double(s.channels) / double(s.groups) : -1;
    const void* const from = memory.block(double(s.filters) * taps * depth);
    if (!memory.possible || !to) return;
    if (qk_conv_pack(&s, in.small(QK_S8, QK_U8), from, w_zero, to, bytes, &p, text(), text_bytes()) != QK_OK) return;
    a.w = in.once_in(64) ? nullptr : memory.extended(p);
    if (!(pixels >= 1 && pixels <= 4096)) memory.possible = false;
    a.epilogue = epilogue(memory.possible ? int64_t(pixels) : 1, s.filters, in.small(QK_S32, QK_U16));
    a.lines = range();
    limit(pixels * double(s.filters) * taps * depth);
    finish(a, qk_conv_workspace, qk_conv);
  }

  void elementwise() {
    qk_elementwise_args a = {};
    const int op = in.byte() % 4;
    a.size = in.size_of(sizeof a), a.kernel = in.once_in(8) ? in.small(0, 127) : QK_ANY_KERNEL;
    a.in_type = op == 0 || op == 3 ? QK_F32 : op == 1 ? in.small(QK_S8, QK_U16) : QK_S32;
    a.out_type = op == 1 ? QK_F32 : in.small(QK_S8, op == 2 ? QK_U16 : op == 3 ? QK_U8 : QK_U16);
    if (in.once_in(32)) a.in_type = in.small(-1, 9);
    a.rows = in.number(), a.columns = in.number();
    a.group = in.once_in(2) ? in.number() : a.columns, a.repeat = in.number();
    const double columns = a.group > 0 ? (double(a.columns) + double(a.group) - 1) / double(a.group) : 1;
    a.scale_rows = in.once_in(2) ? 1 : in.number();
    a.scale_columns = in.once_in(32) ? in.number() : columns < 1e9 ? int64_t(columns) : 1;
    const double scales = double(a.scale_rows) * double(a.scale_columns), count = double(a.rows) * double(a.columns);
    if (a.in_type == QK_F32) a.in = memory.values<float>(count);
    else a.in = memory.values<int32_t>(count);
    a.out = memory.values<float>(count);
    a.scale = memory.values<float>(scales), a.m = memory.values<float>(scales), a.m64 = memory.values<double>(scales);
    if (in.once_in(2)) a.zero = memory.values<int32_t>(scales);
    a.q = memory.values<int32_t>(scales), a.e = memory.values<int32_t>(scales);
    if (in.once_in(2)) a.bias = memory.values<int32_t>(scales);
    a.low = op == 3 && in.once_in(2) ? -127 : in.small(0, 3), a.high = op == 3 ? (a.low ? 127 : 255) : in.small(1, 127);
    a.rounding = in.small(0, 4);
    const double ranges = a.group > 0 ? double(a.rows) * double(columns < 1e9 ? int64_t(columns) : 1 << 30) : 1;
    a.found_scale = memory.values<float>(ranges), a.found_zero = memory.values<int32_t>(ranges);
    if (in.once_in(2)) a.found_sums = memory.values<int32_t>(ranges);
    const qk_elementwise_args* const given = in.once_in(64) ? nullptr : memory.extended(a);
    if (!memory.possible) return;
    static int32_t (*const ops[])(const qk_elementwise_args*, const qk_host*, char*, size_t) = {
        qk_quantize, qk_dequantize, qk_requantize, qk_dynamic_quantize};
    noted(ops[op](given, host(0, in.small(0, 5)), text(), text_bytes()));
  }

  int32_t code_type() { return in.once_in(32) ? in.small(-1, 9) : in.small(QK_S8, QK_U8); }
  float real() {
    static const float odd[] = {0, -1, 1e-45f, 3e38f, 1e-3f, __builtin_inff(), __builtin_nanf("")};
    return in.once_in(16) ? odd[in.byte() % 7] : float(1 + in.byte()) / 512;
  }
  int32_t point(int32_t type) { return in.small(type == QK_S8 ? -128 : 0, type == QK_S8 ? 127 : 255); }

  template <class Args>
  void no_workspace(const Args& args, int32_t (*run)(const Args*, const qk_host*, char*, size_t)) {
    const Args* const given = in.once_in(64) ? nullptr : memory.extended(args);
    if (memory.possible) noted(run(given, host(0, in.small(0, 5)), text(), text_bytes()));
  }

  void pair() {
    qk_pair_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = in.once_in(8) ? kernel() : QK_ANY_KERNEL, a.type = code_type();
    a.count = in.number();
    a.a = memory.block(double(a.count)), a.b = memory.block(double(a.count)), a.out = memory.block(double(a.count));
    a.a_scale = real(), a.b_scale = real(), a.out_scale = real();
    a.a_zero = point(a.type), a.b_zero = point(a.type), a.out_zero = point(a.type);
    no_workspace(a, in.once_in(2) ? qk_add : qk_mul);
  }

  void lookup() {
    qk_lookup_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = in.once_in(8) ? kernel() : QK_ANY_KERNEL, a.type = code_type();
    a.rows = in.number(), a.columns = in.number();
    a.in_row = in.once_in(3) ? in.number() : 0, a.out_row = in.once_in(3) ? in.number() : 0;
    const auto row = [&](int64_t given) { return double(given ? given : a.columns); };
    a.in = memory.block(reach(double(a.rows), row(a.in_row), double(a.columns), 1));
    a.out = memory.block(reach(double(a.rows), row(a.out_row), double(a.columns), 1));
    void* const table = memory.block(256);
    qk_rescale_table(code_type(), real(), point(a.type), real(), point(a.type), table, text(), text_bytes());
    a.table = table;
    no_workspace(a, qk_lookup);
  }

  void softmax() {
    qk_softmax_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = in.once_in(8) ? kernel() : QK_ANY_KERNEL, a.type = code_type();
    a.rows = in.number(), a.columns = in.number();
    a.in = memory.block(double(a.rows) * double(a.columns)), a.out = memory.block(double(a.rows) * double(a.columns));
    float* const table = memory.values<float>(256);
    qk_softmax_table(real(), a.columns, table, text(), text_bytes());
    a.table = table, a.out_scale = real(), a.out_zero = point(a.type);
    no_workspace(a, qk_softmax);
  }

  // Bytes from the first element to the last, where no step leads back.
  double reach(const int64_t (&sizes)[4], const int64_t (&step)[4]) {
    bool any = false;
    for (const int64_t one : step) any = any || one;
    double last = 0, next = 1;
    for (int d = 3; d >= 0; next *= double(sizes[d--])) {
      if (sizes[d] < 1 || step[d] < 0) return -1;
      last += double(sizes[d] - 1) * (any ? double(step[d]) : next);
    }
    return last + 1;
  }

  void pools() {
    qk_pool_args a = {};
    const int op = in.byte() % 3;  // 2: the whole image
    a.size = in.size_of(sizeof a), a.kernel = in.once_in(8) ? kernel() : QK_ANY_KERNEL, a.type = code_type();
    a.images = in.small(1, 3), a.height = in.small(1, 9), a.width = in.small(1, 9), a.channels = in.number();
    for (int64_t* size : {&a.images, &a.height, &a.width})
      if (in.once_in(48)) *size = in.number();
    a.out_height = in.small(1, 5), a.out_width = in.small(1, 5);
    for (int i = 0; i < 2; ++i) {
      a.window[i] = in.small(1, 4), a.stride[i] = in.small(1, 3), a.before[i] = in.small(0, 2);
      a.dilation[i] = op == 0 ? in.small(1, 2) : in.once_in(16) ? in.small(0, 2) : 1;
      if (in.once_in(48)) a.window[i] = in.number();
      if (in.once_in(48)) a.before[i] = in.number();
    }
    const bool planes = in.once_in(3);  // NCHW
    const bool few = a.out_height > 0 && a.out_height < 99 && a.out_width > 0 && a.out_width < 99;
    const int64_t pixels = op == 2 ? 1 : few ? a.out_height * a.out_width : 99, wide = op == 2 ? 1 : a.out_width;
    if (planes && few && a.channels > 0 && a.channels < 4096 && a.height > 0 && a.height < 99 && a.width > 0 &&
        a.width < 99) {
      const int64_t x[4] = {a.channels * a.height * a.width, a.width, 1, a.height * a.width};
      const int64_t out[4] = {a.channels * pixels, wide, 1, pixels};
      memcpy(a.x_step, x, sizeof x), memcpy(a.out_step, out, sizeof out);
    }
    if (in.once_in(32)) a.x_step[in.byte() % 4] = in.number();
    const int64_t from[4] = {a.images, a.height, a.width, a.channels};
    const int64_t to[4] = {a.images, op == 2 ? 1 : a.out_height, wide, a.channels};
    a.x = memory.block(reach(from, a.x_step)), a.out = memory.block(reach(to, a.out_step));
    a.count_outside = in.small(0, 1), a.scale = real(), a.out_scale = real();
    a.zero = point(a.type), a.out_zero = point(a.type);
    const double each = op == 2 ? double(a.height) * double(a.width) : double(a.window[0]) * double(a.window[1]);
    limit(each * double(a.images) * double(a.channels) * double(pixels));
    if (op == 2) finish(a, qk_global_avg_pool_workspace, qk_global_avg_pool);
    else no_workspace(a, op == 0 ? qk_max_pool : qk_avg_pool);
  }

  void search() {
    qk_topk_args a = {};
    a.size = in.size_of(sizeof a), a.kernel = kernel();
    a.corpus_type = code_type(), a.query_type = in.once_in(2) ? code_type() : a.corpus_type;
    a.distance = in.small(0, 1);
    a.rows = in.number(), a.dims = in.number(), a.queries = in.once_in(8) ? in.small(250, 270) : in.number();
    a.corpus_row = in.once_in(16) ? in.number() : a.dims, a.corpus_column = in.once_in(16) ? in.number() : 1;
    a.query_row = in.once_in(16) ? in.number() : a.dims, a.query_column = in.once_in(16) ? in.number() : 1;
    a.k = in.once_in(2) ? in.number() : 1;
    a.corpus = memory.block(reach(double(a.rows), double(a.corpus_row), double(a.dims), double(a.corpus_column)));
    a.query = memory.block(reach(double(a.queries), double(a.query_row), double(a.dims), double(a.query_column)));
    a.scores = memory.values<int32_t>(double(a.queries) * double(a.k));
    a.indices = memory.values<int64_t>(double(a.queries) * double(a.k));
    limit(double(a.rows) * double(a.dims) * double(a.queries));
    finish(a, qk_topk_workspace, qk_topk);
  }

  void opinions() {
    static const char* const words[] = {"gemm",
                                        "linear",
                                        "conv",
                                        "quantize",
                                        "u8s8s32",
                                        "f32s8s32",
                                        "s8u4f32",
                                        "f32s8",
                                        "n16k4",
                                        "n16k4x2/32",
                                        "n16k4x2/",
                                        "n16k4x4/-3",
                                        "n16k4x2/99999999999",
                                        "c4t4",
                                        "",
                                        "a text that is much longer than any name"};
    qk_problem p = {};
    const qk_conv_shape s = shape();
    p.size = in.size_of(sizeof p);
    const auto word = [&] { return in.once_in(32) ? nullptr : words[in.byte() % 16]; };
    p.op = word(), p.types = word(), p.layout = word();
    p.m = in.number(), p.n = in.number(), p.k = in.number();
    p.conv = in.once_in(4) ? nullptr : &s;
    const qk_problem* const given = in.once_in(64) ? nullptr : memory.extended(p);
    double cost;
    int32_t chosen, q, e;
    qk_judge(given, in.small(-2, 253), in.once_in(8) ? nullptr : &cost, text(), text_bytes());
    qk_choose(given, in.once_in(8) ? nullptr : &chosen, text(), text_bytes());
    qk_kernel_info info = {};
    info.size = in.size_of(sizeof info);
    if (info.size <= sizeof info || info.size > 4096) qk_kernel(in.small(-2, 253), &info, text(), text_bytes());
    double real;
    const int64_t bits = in.number();
    memcpy(&real, &bits, sizeof real);
    qk_multiplier(real, &q, in.once_in(8) ? nullptr : &e, text(), text_bytes());
    qk_status_name(int32_t(in.number()));
  }

  void run() {
    switch (in.byte() % 10) {
      case 0:
        return gemm();
      case 1:
        return linear();
      case 2:
        return conv();
      case 3:
        return elementwise();
      case 4:
        return pair();
      case 5:
        return lookup();
      case 6:
        return softmax();
      case 7:
        return pools();
      case 8:
        return search();
      default:
        return opinions();
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  std::unique_ptr<Session>(new Session(in))->run();
  return 0;
}

#ifdef QK_REPLAY
// replay <count> <seed>: inputs made here, the same ones always. Says how many calls there were.
int main(int argc, char** argv) {
  const long count = argc > 1 ? atol(argv[1]) : 1000;
  uint64_t state = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  for (long i = 0; i < count; ++i) {
    uint8_t data[512];
    for (uint8_t& byte : data) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = uint8_t(state >> 56);
    }
    LLVMFuzzerTestOneInput(data, sizeof data);
  }
  printf("%ld calls\n", count);
  for (int32_t status = 0; status < 7; ++status) printf("%ld %s\n", seen[status], qk_status_name(status));
  return 0;
}
#endif
