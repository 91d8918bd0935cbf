// linear without a detour, as fast_call.cpp: Python has decided which row runs a weight at that number of rows, and told
// the weight's handle. What is unusual is answered None, "ask Python".
//
//   fast_linear(x, packed, bias, activation, out)                                  floats of floats
//   fast_codes(x, packed, bias, activation, out, scale, zero, out_scale, out_zero)  of codes with one scale: codes of x's
//                                                         type, half to even; where out_scale is None, floats
#include <string.h>

#include "cpu/environment.h"
#include "cpu/linear.h"
#include "cpu/threads.h"
#include "fast_call.h"
#include "fast_columns.h"
#include "fast_linear.h"
#include "linear.h"
#include "views.h"

namespace qk {
namespace {

using pybind11::detail::npy_api;

constexpr const char* kLinearName = "qkernels.packed_linear";
constexpr double kHoldGilUs = 3;  // shorter products are not worth two GIL switches
constexpr idx kKnown = 32;
constexpr int kKinds = 3;

// A weight, its columns' scales, and the rows that were chosen for it. The caller keeps the buffers alive.
struct LinearHandle {
  Packed w;            // of 8 bits; of fewer only k and n
  const float* scale;  // null where groups have scales
  const int32_t* zero;
  PackedInt4 low;  // of 4 or 2 bits, else its bits are 0
  struct {
    idx m;
    int row;
  } known[kKinds][kKnown];
};

LinearHandle* handle_of(PyObject* object) {
  return PyCapsule_IsValid(object, kLinearName) ? static_cast<LinearHandle*>(PyCapsule_GetPointer(object, kLinearName))
                                                : nullptr;
}

PyObject* new_array(const View& x, idx n, int type) {
  const npy_api& api = npy_api::get();
  Py_intptr_t shape[kMaxBatchDims + 2];
  for (int d = 0; d < x.dims - 1; ++d) shape[d] = x.shape[d];
  shape[x.dims - 1] = n;
  PyObject* descr = api.PyArray_DescrFromType_(type);
  return api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, x.dims, shape, nullptr, nullptr, 0, nullptr);
}

// One call: its operands, and what they are.
struct Call {
  View x, bias, out;
  const LinearHandle* handle;
  const KernelRow* row = nullptr;
  const Int4Row* low_row = nullptr;  // of weights of 4 or 2 bits
  XKind kind;
  idx m, n, k;
  PyObject* result = nullptr;  // a reference of ours

  bool reads(PyObject* x_object, PyObject* handle_object) {
    if (!is_exact_array(x_object)) return false;
    x = view_of(x_object);
    const bool real = is_float32(x_object);
    if (!real && x.type > kUint8) return false;
    kind = real ? kOfFloats : x.type == kInt8 ? kOfSigned : kOfUnsigned;
    handle = handle_of(handle_object);
    if (!handle || x.dims < 1 || x.dims > kMaxBatchDims || x.shape[x.dims - 1] != handle->w.k) return false;
    if (!adjacent(x, real ? 4 : 1)) return false;
    idx rows = 1;
    for (int d = 0; d < x.dims - 1; ++d) rows *= x.shape[d];
    return decided(rows);
  }

  // bias: None, float32 (n,), or of codes int32 (n,)
  bool reads_bias(PyObject* object, Epilogue& e) {
    if (object == Py_None) return true;
    if (!is_exact_array(object)) return false;
    bias = view_of(object);
    if (bias.dims != 1 || bias.shape[0] != n || !adjacent(bias, 4)) return false;
    if (is_float32(object)) e.float_bias = reinterpret_cast<const float*>(bias.data);
    else if (is_int32(bias) && kind != kOfFloats) e.bias = reinterpret_cast<const int32_t*>(bias.data);
    else return false;
    return true;
  }

  // out: None, or adjacent of `type` and the result's shape, apart from what is read
  bool takes_out(PyObject* object, bool real) {
    const idx bytes = real ? 4 : 1;
    const int code = kind == kOfSigned ? npy_api::NPY_BYTE_ : npy_api::NPY_UBYTE_;
    if (object == Py_None) {
      result = new_array(x, n, real ? int(npy_api::NPY_FLOAT_) : code);
      if (!result) return false;
    } else {
      if (!is_exact_array(object)) return false;
      Py_INCREF(result = object);
    }
    out = view_of(result);
    bool good = out.dims == x.dims && out.writeable && adjacent(out, bytes) && out.shape[x.dims - 1] == n &&
                (real ? is_float32(result) : is_byte(out, kind == kOfSigned));
    for (int d = 0; d < x.dims - 1 && good; ++d) good = out.shape[d] == x.shape[d];
    return good && !overlap(out, m * n * bytes, x, m * k * (kind == kOfFloats ? 4 : 1)) &&
           !overlap(out, m * n * bytes, bias, n * 4);
  }

  PyObject* give_up() {
    Py_XDECREF(result);
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }

  // The row that was chosen for so many rows of x, if one was.
  bool decided(idx rows) {
    const auto& known = handle->known[kind][rows % kKnown];
    if (rows < 1 || known.m != rows || use_in_force()) return false;
    if (handle->low.bits) low_row = &all_int4_rows().rows[known.row];
    else row = &all_rows().rows[known.row];
    m = rows, n = handle->w.n, k = handle->w.k;
    return true;
  }

  bool multiply(const Gemm& g, Epilogue& e, const float* values, int threads) const {
    if (!low_row) return run_linear(*row, g, e, values, threads, false);
    Int4 product = handle->low.g;
    set_caches(product);
    product.m = m;
    if (!values) product.a = g.a, product.a_row = g.a_row, product.a_col = g.a_col, product.a_zero = g.a_zero;
    e.float_sums = product.scales != nullptr;
    return run_int4(*low_row, product, e, values, threads, false);
  }

  bool multiplied(const Gemm& g, Epilogue& e, const float* values) const {
    if ((low_row ? int4_us(*low_row, m, n, k) : estimated_us(*row, m, n, k)) < kHoldGilUs)
      return multiply(g, e, values, 1);
    bool good;
    Py_BEGIN_ALLOW_THREADS;
    good = multiply(g, e, values, num_threads());
    Py_END_ALLOW_THREADS;
    return good;
  }

  PyObject* run(const Gemm& g, Epilogue& e, const float* values) {
    if (multiplied(g, e, values)) return result;
    Py_DECREF(result);
    return PyErr_NoMemory();
  }

  Gemm gemm() const {
    Job job = {};
    set_packed(job, handle->w);
    set_caches(job.one);
    job.one.m = m, job.one.n = n, job.one.k = k;
    job.one.w_zero = handle->zero;
    return job.one;
  }
};

PyObject* fast_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  Epilogue e = {};
  e.type = Written::f32;
  if (count != 5 || !call.reads(args[0], args[1]) || call.kind != kOfFloats || !call.reads_bias(args[2], e) ||
      !set_clamp(e, args[3]) || !call.takes_out(args[4], true))
    return call.give_up();
  e.out = call.out.data, e.out_row = call.n, e.w_scale = call.handle->scale;
  return call.run(call.gemm(), e, reinterpret_cast<const float*>(call.x.data));
}

PyObject* fast_codes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  Epilogue e = {};
  if (count != 9 || !call.reads(args[0], args[1]) || call.kind == kOfFloats || !call.reads_bias(args[2], e) ||
      !set_clamp(e, args[3]))
    return call.give_up();
  PyObject *scale = args[5], *out_scale = args[7];
  if (!is_exact_array(scale) || !is_float32(scale) || !PyLong_CheckExact(args[6]) || !PyLong_CheckExact(args[8]))
    return call.give_up();
  const View s = view_of(scale);
  const bool real = out_scale == Py_None;
  const bool one = s.dims == 0 || (s.dims == 1 && s.shape[0] == 1);
  if (!one || !s.aligned || !(real || PyFloat_Check(out_scale)) || !call.takes_out(args[4], real))
    return call.give_up();
  const float a_scale = *reinterpret_cast<const float*>(s.data);
  const int32_t zero = int32_t(PyLong_AsLong(args[6])), out_zero = int32_t(PyLong_AsLong(args[8]));
  const int32_t low = call.kind == kOfSigned ? -128 : 0, high = low + 255;
  const double reach = zero - low > high - zero ? zero - low : high - zero;
  const idx n = call.n, m = call.m;
  // multipliers and rounded biases of columns, zero points of rows
  void* const scratch = thread_scratch(kColumnScratch, size_t(n * 8 + m * 4));
  if (!scratch) return call.give_up();
  float* const multipliers = static_cast<float*>(scratch);
  int32_t* const rounded = reinterpret_cast<int32_t*>(multipliers + n);
  int32_t* const zeros = rounded + n;
  const FloatEnvironment exact;
  e.out = call.out.data, e.out_row = n, e.w_scale = call.handle->scale, e.a_scale = &a_scale;
  const float sy = real ? 1.0f : float(PyFloat_AS_DOUBLE(out_scale));
  const float* const float_bias = e.float_bias;
  if (!(sy > 0) || !is_finite(sy) || out_zero < (real ? 0 : low) || out_zero > (real ? 0 : high)) return call.give_up();
  if (!e.w_scale) {  // groups have scales: sums are real, weighed already (A10)
    if (!real || e.bias) return call.give_up();
  } else if (!set_columns(e, e.w_scale, n, call.k, a_scale, sy, multipliers, rounded, reach)) {
    return call.give_up();
  }
  if (zero && call.low_row && !call.handle->low.g.w_sums) return call.give_up();
  if (real) {
    e.type = Written::f32;
    e.float_bias = float_bias;
    if (float_bias) e.bias = nullptr;
  } else {
    e.type = call.kind == kOfSigned ? Written::s8 : Written::u8;
    e.zero = out_zero, e.low = low, e.high = high;
    if (e.clamps) {
      e.low = end_of(e.clamp_low, sy, out_zero, low, high);
      e.high = end_of(e.clamp_high, sy, out_zero, low, high);
    }
  }
  Gemm g = call.gemm();
  g.a = call.x.data, g.a_row = call.k, g.a_col = 1;
  if (zero) {
    for (idx i = 0; i < m; ++i) zeros[i] = zero;
    g.a_zero = zeros;
  }
  return call.run(g, e, nullptr);
}

// packed_linear(data, sums, scale, zero or None, k, n, is_signed)
PyObject* packed_linear(PyObject*, PyObject* args) {
  PyObject *data, *sums, *scale, *zero;
  LinearHandle made = {};
  int is_signed;
  if (!PyArg_ParseTuple(args, "OOOOnnp", &data, &sums, &scale, &zero, &made.w.k, &made.w.n, &is_signed)) return nullptr;
  const idx n = made.w.n, k = made.w.k;
  const View dv = view_of(data), sv = view_of(sums), cv = view_of(scale), zv = view_of(zero);
  const idx whole = padded(n, kPanel);
  const bool good = k > 0 && n > 0 && dv.dims == 1 && is_byte(dv, false) && dv.strides[0] == 1 &&
                    dv.shape[0] == whole * padded(k, kPackedK) && sv.dims == 1 && is_int32(sv) && adjacent(sv, 4) &&
                    sv.shape[0] == whole && cv.dims == 1 && is_float32(scale) && adjacent(cv, 4) && cv.shape[0] == n &&
                    (zero == Py_None || (zv.dims == 1 && is_int32(zv) && adjacent(zv, 4) && zv.shape[0] == n));
  if (!good) {
    PyErr_SetString(PyExc_ValueError, "packed_linear: the arrays do not fit");
    return nullptr;
  }
  made.w.data = dv.data, made.w.sums = reinterpret_cast<const int32_t*>(sv.data), made.w.is_signed = is_signed;
  made.scale = reinterpret_cast<const float*>(cv.data);
  made.zero = zero == Py_None ? nullptr : reinterpret_cast<const int32_t*>(zv.data);
  return PyCapsule_New(new LinearHandle(made), kLinearName, [](PyObject* self) { delete handle_of(self); });
}

// packed_linear_int4(packed_int4, scale or None)
PyObject* packed_linear_int4(PyObject*, PyObject* args) {
  PyObject *weight, *scale;
  if (!PyArg_ParseTuple(args, "OO", &weight, &scale)) return nullptr;
  const PackedInt4* const low = packed_int4_of(weight);
  const View cv = view_of(scale);
  const bool fits = low && cv.dims == 1 && is_float32(scale) && adjacent(cv, 4) && cv.shape[0] == low->g.n;
  if (!low || (low->g.scales ? scale != Py_None : !fits)) {
    PyErr_SetString(PyExc_ValueError, "packed_linear_int4: the arrays do not fit");
    return nullptr;
  }
  LinearHandle made = {};
  made.low = *low;
  made.w.k = low->g.k, made.w.n = low->g.n;
  made.scale = fits ? reinterpret_cast<const float*>(cv.data) : nullptr;
  return PyCapsule_New(new LinearHandle(made), kLinearName, [](PyObject* self) { delete handle_of(self); });
}

bool runs(const Packed& w, int index, bool floats) {
  const RowList list = all_rows();
  return index < list.count && cpu_runs(list.rows[index].isa) && (!floats || list.rows[index].a_signed) &&
         list.rows[index].w_signed == w.is_signed;
}

bool runs_int4(const PackedInt4& w, int index, bool floats) {
  const Int4List list = all_int4_rows();
  return index < list.count && cpu_runs(list.rows[index].isa) && (!floats || list.rows[index].a_signed) &&
         !list.rows[index].of_floats && list.rows[index].bits == w.bits && list.rows[index].w_signed == w.w_signed &&
         list.rows[index].float_sums == (w.g.scales != nullptr);
}

// remember_linear(packed, row, m, floats)
PyObject* remember_linear(PyObject*, PyObject* args) {
  PyObject* object;
  int row, floats;
  Py_ssize_t m;
  if (!PyArg_ParseTuple(args, "Oinp", &object, &row, &m, &floats)) return nullptr;
  LinearHandle* const handle = handle_of(object);
  if (!handle || m < 1 || row < 0 ||
      !(handle->low.bits ? runs_int4(handle->low, row, floats) : runs(handle->w, row, floats))) {
    PyErr_SetString(PyExc_ValueError, "remember_linear: that row does not run this weight here");
    return nullptr;
  }
  const bool is_signed = handle->low.bits ? all_int4_rows().rows[row].a_signed : all_rows().rows[row].a_signed;
  const XKind kind = floats ? kOfFloats : is_signed ? kOfSigned : kOfUnsigned;
  handle->known[kind][m % kKnown] = {m, row};
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"fast_linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_linear)), METH_FASTCALL,
     "fast_linear(x, packed, bias, activation, out) → the result, or None where Python must decide."},
    {"fast_codes", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_codes)), METH_FASTCALL,
     "fast_codes(x, packed, bias, activation, out, scale, zero, out_scale, out_zero) → likewise, of codes."},
    {"packed_linear", packed_linear, METH_VARARGS,
     "packed_linear(data, sums, scale, zero, k, n, is_signed): a handle; the caller keeps the buffers alive."},
    {"packed_linear_int4", packed_linear_int4, METH_VARARGS,
     "packed_linear_int4(packed_int4, scale or None): the same of weights of 4 or 2 bits."},
    {"remember_linear", remember_linear, METH_VARARGS,
     "remember_linear(packed, row, m, floats): this row runs this weight with m rows of floats, or of its own codes."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool linear_sizes(PyObject* handle, idx* n, idx* k) {
  const LinearHandle* const found = handle_of(handle);
  if (!found) return false;
  *n = found->w.n, *k = found->w.k;
  return true;
}

bool linear_columns(PyObject* handle, LinearColumns* columns) {
  const LinearHandle* const found = handle_of(handle);
  if (!found || found->low.bits) return false;
  *columns = {found->w.n, found->w.k, found->scale, found->zero, found->w.sums};
  return true;
}

bool linear_decided(PyObject* handle, idx m, XKind kind) {
  Call call;
  call.handle = handle_of(handle), call.kind = kind;
  return call.handle && call.decided(m);
}

bool linear_of_floats(PyObject* handle, const float* x, idx m, Epilogue& e) {
  Call call;
  call.handle = handle_of(handle), call.kind = kOfFloats;
  if (!call.handle || !call.decided(m)) return false;
  e.out_row = call.n, e.residual_row = call.n, e.w_scale = call.handle->scale;
  return call.multiplied(call.gemm(), e, x);
}

bool linear_of_codes(PyObject* handle, const uint8_t* codes, idx m, XKind kind, Epilogue& e) {
  Call call;
  call.handle = handle_of(handle), call.kind = kind;
  if (!call.handle || !call.decided(m)) return false;
  e.out_row = call.n, e.residual_row = call.n, e.w_scale = call.handle->scale;
  Gemm g = call.gemm();
  g.a = codes, g.a_row = call.k, g.a_col = 1;
  return call.multiplied(g, e, nullptr);
}

void add_fast_linear(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
