// linear of tensors whose scales are known before the call: x is quantized with one scale, or is codes already, and the
// result is codes, perhaps through a table, or real numbers. What depends on scales alone is made once, by prepare_linear.
//
//   prepare_linear(packed, bias, scale, zero, is_signed, out_scale, out_zero, table)   → a handle
//   fast_static(x, prepared, activation, residual, type)   x (…, k) float32 or codes → (…, n) codes, or of `type`
//
// A call of its own for each of the three (quantize, product, table) took 240 + 140 µs where a 128×384 → 1536 layer is
// one of many, and 120 + 50 in a loop alone: between layers every frame of Python has left the caches.
#include <vector>

#include "cpu/elements.h"
#include "cpu/environment.h"
#include "cpu/features.h"
#include "cpu/threads.h"
#include "fast_call.h"
#include "fast_columns.h"
#include "fast_linear.h"
#include "tensors.h"
#include "views.h"

namespace qk {
namespace {

constexpr const char* kPreparedName = "qkernels.prepared_linear";
constexpr idx kHoldGil = 1 << 14;  // elements, as in fast_elements.cpp

struct Prepared {
  PyObject *packed, *bias;  // kept alive
  float scale, out_scale;
  int32_t zero, out_zero;
  bool is_signed, codes_out, has_table;
  std::vector<float> m;
  std::vector<int32_t> of_columns;  // bias of codes, and what x's zero point adds to every sum
  const float* float_bias;
  uint8_t table[256];
  idx n, k;

  XKind kind() const { return is_signed ? kOfSigned : kOfUnsigned; }
  int32_t low() const { return is_signed ? -128 : 0; }
};

const ElementwiseRow* row_of(const char* op, const char* types) {
  for (int i = 0; i < elementwise_count(); ++i) {
    const ElementwiseRow& row = elementwise_row(i);
    if (strcmp(row.op, op) == 0 && strcmp(row.types, types) == 0 && cpu_runs(row.isa)) return &row;
  }
  return nullptr;
}

// One long row, on as many threads as it is worth.
void run_over(const ElementwiseRow& row, Elementwise job, idx size) {
  job.rows = 1, job.inner = size, job.at = {1, 1, 1, size};
  if (size < kHoldGil) return run(row, job, 1, false);
  Py_BEGIN_ALLOW_THREADS;
  run(row, job, num_threads(), false);
  Py_END_ALLOW_THREADS;
}

// ---------------------------------------------------------------- once

// −zero · Σ_k (w − w_zero) of each column, mod 2³².
void add_zero_point(Prepared& p, const LinearColumns& by) {
  if (!p.zero) return;
  for (idx j = 0; j < p.n; ++j) {
    const uint32_t weights = uint32_t(by.sums[j]) - (by.zero ? uint32_t(p.k) * uint32_t(by.zero[j]) : 0u);
    p.of_columns[j] = int32_t(uint32_t(p.of_columns[j]) - uint32_t(p.zero) * weights);
  }
}

bool fill(Prepared& p, const LinearColumns& by) {
  const FloatEnvironment exact;
  const int32_t low = p.low(), high = low + 255;
  if (!(p.scale > 0) || !is_finite(p.scale) || !(p.out_scale > 0) || !is_finite(p.out_scale)) return false;
  if (p.zero < low || p.zero > high || p.out_zero < low || p.out_zero > high) return false;
  Epilogue e = {};
  e.float_bias = p.float_bias;
  p.m.resize(size_t(p.n)), p.of_columns.assign(size_t(p.n), 0);
  const double reach = p.zero - low > high - p.zero ? p.zero - low : high - p.zero;
  if (!set_columns(e, by.scale, p.n, p.k, p.scale, p.out_scale, p.m.data(), p.of_columns.data(), reach)) return false;
  if (!p.codes_out) p.of_columns.assign(size_t(p.n), 0);  // its bias stays real
  add_zero_point(p, by);
  return true;
}

void forget(PyObject* capsule) {
  auto* const p = static_cast<Prepared*>(PyCapsule_GetPointer(capsule, kPreparedName));
  Py_DECREF(p->packed);
  Py_DECREF(p->bias);
  delete p;
}

// None: where A0 or A2 must be looked at, Python says what is wrong.
PyObject* prepare_linear(PyObject*, PyObject* args) {
  PyObject *packed, *bias, *out_scale, *table;
  float scale;
  int zero, is_signed, out_zero;
  if (!PyArg_ParseTuple(args, "OOfipOiO", &packed, &bias, &scale, &zero, &is_signed, &out_scale, &out_zero, &table))
    return nullptr;
  LinearColumns by;
  if (!linear_columns(packed, &by)) Py_RETURN_NONE;
  Prepared made = {};
  made.packed = packed, made.bias = bias, made.n = by.n, made.k = by.k;
  made.scale = scale, made.zero = zero, made.out_zero = out_zero, made.is_signed = is_signed;
  made.codes_out = out_scale != Py_None, made.has_table = table != Py_None, made.out_scale = 1;
  const View b = view_of(bias), t = view_of(table);
  bool good = bias == Py_None ||
              (is_exact_array(bias) && is_float32(bias) && b.dims == 1 && b.shape[0] == by.n && adjacent(b, 4));
  if (made.codes_out) good &= PyFloat_Check(out_scale);
  else good &= out_zero == 0 && !made.has_table;
  if (made.has_table) good &= t.dims == 1 && t.shape[0] == 256 && is_byte(t, is_signed) && adjacent(t, 1);
  if (!good) {
    PyErr_SetString(PyExc_ValueError, "prepare_linear: the arrays do not fit");
    return nullptr;
  }
  if (made.codes_out) made.out_scale = float(PyFloat_AS_DOUBLE(out_scale));
  if (bias != Py_None) made.float_bias = reinterpret_cast<const float*>(b.data);
  for (int i = 0; i < 256 && made.has_table; ++i) made.table[i] = t.data[is_signed ? i ^ 128 : i];  // by the raw byte
  if (!fill(made, by)) Py_RETURN_NONE;
  PyObject* const capsule = PyCapsule_New(new Prepared(made), kPreparedName, forget);
  if (capsule) Py_INCREF(packed), Py_INCREF(bias);
  return capsule;
}

// ---------------------------------------------------------------- each call

// x's codes: its own, or made of floats in scratch. Null: neither; or no memory.
const uint8_t* codes_of(const Prepared& p, const Tensor& x, idx size) {
  const dlpack::DataType bytes = {uint8_t(p.is_signed ? dlpack::kInt : dlpack::kUint), 8, 1};
  if (is_type(x, bytes)) return static_cast<const uint8_t*>(x.data);
  if (!is_type(x, kFloat32) || uintptr_t(x.data) % 4) return nullptr;
  static const ElementwiseRow *const to_signed = row_of("quantize", "f32s8"), *const to_unsigned =
                                                                                  row_of("quantize", "f32u8");
  auto* const codes = static_cast<uint8_t*>(thread_scratch(kStaticScratch, size_t(size)));
  if (!codes) return nullptr;
  Elementwise job = {};
  job.in = x.data, job.out = codes;
  job.scale = &p.scale, job.zero = &p.zero, job.low = p.low(), job.high = p.low() + 255;
  run_over(*(p.is_signed ? to_signed : to_unsigned), job, size);
  return codes;
}

void through_table(const Prepared& p, void* codes, idx size) {
  static const ElementwiseRow* const lookup = row_of("lookup", "u8u8");
  Elementwise job = {};
  job.in = job.out = codes, job.table = p.table;
  run_over(*lookup, job, size);
}

void set_codes(const Prepared& p, Epilogue& e) {
  const int32_t low = p.low(), high = low + 255;
  const bool clamps = e.clamps;
  e.type = p.is_signed ? Written::s8 : Written::u8;
  e.m = p.m.data(), e.bias = p.of_columns.data(), e.zero = p.out_zero;
  e.low = clamps ? end_of(e.clamp_low, p.out_scale, p.out_zero, low, high) : low;
  e.high = clamps ? end_of(e.clamp_high, p.out_scale, p.out_zero, low, high) : high;
}

PyObject* fast_static(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5 || !PyCapsule_IsValid(args[1], kPreparedName)) return ask_python();
  const Prepared& p = *static_cast<const Prepared*>(PyCapsule_GetPointer(args[1], kPreparedName));
  PyTypeObject* const type = Py_TYPE(args[0]);
  const ExchangeApi* const api = api_of(args[0]);
  Tensor x, residual;
  Epilogue e = {};
  dlpack::DataType wanted = {uint8_t(p.is_signed ? dlpack::kInt : dlpack::kUint), 8, 1};
  if (!api || !reads_any(*api, type, args[0], &x, 1) || x.shape[x.dims - 1] != p.k) return ask_python();
  int64_t shape[kMostDims];
  idx m = 1;
  for (int d = 0; d < x.dims - 1; ++d) m *= shape[d] = x.shape[d];
  shape[x.dims - 1] = p.n;
  const FloatEnvironment exact;
  if (!linear_decided(p.packed, m, p.kind()) || !set_activation(e, args[2])) return ask_python();
  if (p.codes_out) {
    if (args[3] != Py_None || e.curve != Curve::none) return ask_python();
    set_codes(p, e);
  } else {
    if (!set_type(e, &wanted, args[4])) return ask_python();
    e.bias = p.zero ? p.of_columns.data() : nullptr, e.float_bias = p.float_bias, e.a_scale = &p.scale;
    if (args[3] != Py_None) {
      if (!reads(*api, type, args[3], &residual) || !same_shape(residual, x.dims, shape)) return ask_python();
      e.residual_type = Residual::f32, e.residual = residual.data;
    }
  }
  const uint8_t* const codes = codes_of(p, x, m * p.k);
  if (!codes) return ask_python();
  MadeTensor made = {api};
  if (!made.make(wanted, x.dims, shape)) return nullptr;
  e.out = made.data();
  if (!linear_of_codes(p.packed, codes, m, p.kind(), e)) {
    made.drop();
    return PyErr_NoMemory();
  }
  if (p.has_table) through_table(p, e.out, m * p.n);
  return made.give();
}

PyMethodDef methods[] = {
    {"fast_static", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_static)), METH_FASTCALL,
     "fast_static(x, prepared, activation, residual, type) → a tensor, or None where Python must decide."},
    {"prepare_linear", prepare_linear, METH_VARARGS,
     "prepare_linear(packed, bias, scale, zero, is_signed, out_scale, out_zero, table): a handle, or None where Python "
     "must look at the scales."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_static(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
