// fast_linear(x, packed, bias, activation, out) → floats of floats, or None: "ask Python". As fast_call.cpp: Python has
// decided which row runs this weight at that number of rows, and told the weight's handle.
#include <string.h>

#include "cpu/linear.h"
#include "cpu/threads.h"
#include "fast_call.h"
#include "linear.h"
#include "views.h"

namespace qk {
namespace {

using pybind11::detail::npy_api;

constexpr const char* kLinearName = "qkernels.packed_linear";
constexpr double kHoldGilUs = 3;  // shorter products are not worth two GIL switches
constexpr idx kKnown = 32;

// A weight, its columns' scales, and the rows that were chosen for it. The caller keeps the buffers alive.
struct LinearHandle {
  Packed w;
  const float* scale;
  const int32_t* zero;
  struct {
    idx m;
    int row;
  } known[kKnown];
};

LinearHandle* handle_of(PyObject* object) {
  return PyCapsule_IsValid(object, kLinearName) ? static_cast<LinearHandle*>(PyCapsule_GetPointer(object, kLinearName))
                                                : nullptr;
}

bool is_float32(PyObject* array) {
  const auto* descr = pybind11::detail::array_descriptor_proxy(pybind11::detail::array_proxy(array)->descr);
  return descr->type_num == npy_api::NPY_FLOAT_ && descr->byteorder != '>';
}

bool adjacent(const View& v) {
  idx step = 4;
  for (int d = v.dims - 1; d >= 0; step *= v.shape[d--])
    if (v.shape[d] != 1 && v.strides[d] != step) return false;
  return v.aligned;
}

bool overlap(const View& x, idx x_size, const View& y, idx y_size) {
  return x.data < y.data + y_size * 4 && y.data < x.data + x_size * 4;
}

PyObject* new_floats(const View& x, idx n) {
  const npy_api& api = npy_api::get();
  Py_intptr_t shape[kMaxBatchDims + 2];
  for (int d = 0; d < x.dims - 1; ++d) shape[d] = x.shape[d];
  shape[x.dims - 1] = n;
  PyObject* descr = api.PyArray_DescrFromType_(npy_api::NPY_FLOAT_);
  return api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, x.dims, shape, nullptr, nullptr, 0, nullptr);
}

// activation: None, or a tuple (lowest, highest), as Python has checked it
bool set_activation(Epilogue& e, PyObject* activation) {
  if (activation == Py_None) return true;
  if (!PyTuple_CheckExact(activation) || PyTuple_GET_SIZE(activation) != 2) return false;
  PyObject *low = PyTuple_GET_ITEM(activation, 0), *high = PyTuple_GET_ITEM(activation, 1);
  if (!PyFloat_CheckExact(low) || !PyFloat_CheckExact(high)) return false;
  e.clamps = true;
  e.clamp_low = float(PyFloat_AS_DOUBLE(low)), e.clamp_high = float(PyFloat_AS_DOUBLE(high));
  return true;
}

PyObject* fast_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5 || !is_exact_array(args[0]) || !is_float32(args[0])) Py_RETURN_NONE;
  const View x = view_of(args[0]);
  const LinearHandle* const handle = handle_of(args[1]);
  if (!handle || x.dims < 1 || x.dims > kMaxBatchDims || x.shape[x.dims - 1] != handle->w.k || !adjacent(x))
    Py_RETURN_NONE;
  idx m = 1;
  for (int d = 0; d < x.dims - 1; ++d) m *= x.shape[d];
  const auto& known = handle->known[m % kKnown];
  if (m < 1 || known.m != m || use_in_force()) Py_RETURN_NONE;
  const idx n = handle->w.n;

  Epilogue e = {};
  e.type = Written::f32;
  e.out_row = n;
  e.w_scale = handle->scale;
  if (!set_activation(e, args[3])) Py_RETURN_NONE;
  View bias;
  if (args[2] != Py_None) {
    if (!is_exact_array(args[2]) || !is_float32(args[2])) Py_RETURN_NONE;
    bias = view_of(args[2]);
    if (bias.dims != 1 || bias.shape[0] != n || !adjacent(bias)) Py_RETURN_NONE;
    e.float_bias = reinterpret_cast<const float*>(bias.data);
  }
  PyObject* out = args[4];
  const bool given = out != Py_None;
  if (given && (!is_exact_array(out) || !is_float32(out))) Py_RETURN_NONE;
  if (given) Py_INCREF(out);
  else if (!(out = new_floats(x, n))) return nullptr;
  const View o = view_of(out);
  bool good = o.dims == x.dims && o.writeable && adjacent(o) && o.shape[o.dims - 1] == n;
  for (int d = 0; d < x.dims - 1 && good; ++d) good = o.shape[d] == x.shape[d];
  if (good && given) good = !overlap(o, m * n, x, m * handle->w.k) && !(bias.data && overlap(o, m * n, bias, n));
  if (!good) {
    Py_DECREF(out);
    Py_RETURN_NONE;
  }
  e.out = o.data;
  Job job = {};
  set_packed(job, handle->w);
  set_caches(job.one);
  Gemm& g = job.one;
  g.m = m, g.n = n, g.k = handle->w.k;
  g.w_zero = handle->zero;
  const KernelRow& row = all_rows().rows[known.row];
  const float* const values = reinterpret_cast<const float*>(x.data);
  if (estimated_us(row, m, n, g.k) < kHoldGilUs) {
    good = run_linear(row, g, e, values, 1, false);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    good = run_linear(row, g, e, values, num_threads(), false);
    Py_END_ALLOW_THREADS;
  }
  if (good) return out;
  Py_DECREF(out);
  return PyErr_NoMemory();
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
                    dv.shape[0] == whole * padded(k, kPackedK) && sv.dims == 1 && is_int32(sv) && adjacent(sv) &&
                    sv.shape[0] == whole && cv.dims == 1 && is_float32(scale) && adjacent(cv) && cv.shape[0] == n &&
                    (zero == Py_None || (zv.dims == 1 && is_int32(zv) && adjacent(zv) && zv.shape[0] == n));
  if (!good) {
    PyErr_SetString(PyExc_ValueError, "packed_linear: the arrays do not fit");
    return nullptr;
  }
  made.w.data = dv.data, made.w.sums = reinterpret_cast<const int32_t*>(sv.data), made.w.is_signed = is_signed;
  made.scale = reinterpret_cast<const float*>(cv.data);
  made.zero = zero == Py_None ? nullptr : reinterpret_cast<const int32_t*>(zv.data);
  return PyCapsule_New(new LinearHandle(made), kLinearName, [](PyObject* self) { delete handle_of(self); });
}

// remember_linear(packed, row, m)
PyObject* remember_linear(PyObject*, PyObject* args) {
  PyObject* object;
  int row;
  Py_ssize_t m;
  if (!PyArg_ParseTuple(args, "Oin", &object, &row, &m)) return nullptr;
  LinearHandle* const handle = handle_of(object);
  const RowList list = all_rows();
  if (!handle || m < 1 || row < 0 || row >= list.count || !cpu_runs(list.rows[row].isa) || !list.rows[row].a_signed ||
      list.rows[row].w_signed != handle->w.is_signed) {
    PyErr_SetString(PyExc_ValueError, "remember_linear: that row does not run this weight here");
    return nullptr;
  }
  handle->known[m % kKnown] = {m, row};
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"fast_linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_linear)), METH_FASTCALL,
     "fast_linear(x, packed, bias, activation, out) → the result, or None where Python must decide."},
    {"packed_linear", packed_linear, METH_VARARGS,
     "packed_linear(data, sums, scale, zero, k, n, is_signed): a handle; the caller keeps the buffers alive."},
    {"remember_linear", remember_linear, METH_VARARGS,
     "remember_linear(packed, row, m): fast_linear() runs this weight with m rows of floats on this row."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_linear(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
