// fast(a, b, out) → the product, or None: "ask Python". A METH_FASTCALL function: 0.2 µs where a pybind11 call with
// three arrays takes 0.6.
//
// Python decides which row a shape runs on and says so with `remember(...)`; `forget()` when the decision may change
// (threads do not matter). Anything unusual — a subclass, another type or dtype, an overlap, `use()` in force, a shape
// not seen — is answered None, and the careful road in qkernels/ops/matmul.py takes over.
#include "fast_call.h"

#include <string.h>

#include "cpu/threads.h"
#include "views.h"

namespace qk {
namespace {

using pybind11::detail::npy_api;

struct Known {
  idx m, n, k;
  uint32_t kind;  // signs and packed or not; 0: empty
  int row;
};

constexpr uint32_t kKnown = 1024;
constexpr double kHoldGilUs = 3;  // shorter products are not worth two GIL switches
Known known[kKnown] = {};
PyObject* pattern_variable = nullptr;  // ContextVar of use(): None where nothing is in force

uint32_t kind_of(bool a_signed, bool w_signed, bool packed) {
  return 8u | (packed ? 4u : 0u) | (a_signed ? 2u : 0u) | (w_signed ? 1u : 0u);
}

Known& slot_of(idx m, idx n, idx k, uint32_t kind) {
  uint64_t hash =
      uint64_t(m) * 0x9E3779B97F4A7C15u ^ uint64_t(n) * 0xC2B2AE3D27D4EB4Fu ^ uint64_t(k) * 0x165667B19E3779F9u;
  hash = (hash ^ kind) * 0xD6E8FEB86659FD93u;
  return known[hash >> 54];
}
static_assert(kKnown == 1u << (64 - 54), "the hash fills the table");

}  // namespace

bool use_in_force() {
  if (!pattern_variable) return true;
  PyObject* value = nullptr;
  if (PyContextVar_Get(pattern_variable, Py_None, &value) < 0) {
    PyErr_Clear();
    return true;
  }
  const bool any = value != Py_None;
  Py_DECREF(value);
  return any;
}

namespace {

// Do the bytes of x and y meet? Bounds, so possibly yes where they interleave.
bool may_overlap(const View& x, idx x_bytes, const View& y, idx y_bytes) {
  const auto ends = [](const View& v, idx size, const uint8_t*& low, const uint8_t*& high) {
    low = high = v.data;
    for (int d = 0; d < v.dims; ++d) {
      const idx reach = (v.shape[d] - 1) * v.strides[d];
      (reach < 0 ? low : high) += reach;
    }
    high += size;
  };
  const uint8_t *x0, *x1, *y0, *y1;
  ends(x, x_bytes, x0, x1);
  ends(y, y_bytes, y0, y1);
  return x0 < y1 && y0 < x1;
}

PyObject* new_output(const View& a, idx n) {
  const npy_api& api = npy_api::get();
  Py_intptr_t shape[kMaxBatchDims + 2];
  for (int d = 0; d < a.dims - 1; ++d) shape[d] = a.shape[d];
  shape[a.dims - 1] = n;
  PyObject* descr = api.PyArray_DescrFromType_(npy_api::NPY_INT_);
  return api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, a.dims, shape, nullptr, nullptr, 0, nullptr);
}

PyObject* fast(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !is_exact_array(args[0])) Py_RETURN_NONE;
  const View a = view_of(args[0]);
  if (a.dims < 2 || a.dims - 2 > kMaxBatchDims || a.type > kUint8) Py_RETURN_NONE;
  const bool a_signed = a.type == kInt8;
  const Packed* packed = nullptr;
  View b;
  if (is_exact_array(args[1])) {
    b = view_of(args[1]);
    if (b.dims != a.dims || b.type > kUint8) Py_RETURN_NONE;
  } else {
    packed = packed_of(args[1]);
    if (!packed || a.dims != 2) Py_RETURN_NONE;
  }
  const idx m = a.shape[a.dims - 2], k = a.shape[a.dims - 1];
  const idx n = packed ? packed->n : b.shape[b.dims - 1], b_k = packed ? packed->k : b.shape[b.dims - 2];
  const uint32_t kind = kind_of(a_signed, packed ? packed->is_signed : b.type == kInt8, packed != nullptr);
  const Known entry = slot_of(m, n, k, kind);
  if (b_k != k || entry.kind != kind || entry.m != m || entry.n != n || entry.k != k || use_in_force()) Py_RETURN_NONE;

  PyObject* out = args[2];
  const bool given = out != Py_None;
  if (given && !is_exact_array(out)) Py_RETURN_NONE;
  if (given) Py_INCREF(out);
  else if (!(out = new_output(a, n))) return nullptr;
  const View o = view_of(out);
  Job job = {};
  bool good = o.dims == a.dims && is_int32(o) && o.writeable && o.aligned && set_shapes(job, a, o) && job.one.n == n;
  if (good && given) good = !may_overlap(o, 4, a, 1) && (packed || !may_overlap(o, 4, b, 1));
  if (good && packed) set_packed(job, *packed);
  else if (good) good = set_plain(job, b, o);
  if (!good) {
    Py_DECREF(out);
    Py_RETURN_NONE;
  }
  set_caches(job.one);
  const KernelRow& row = all_rows().rows[entry.row];
  double us = estimated_us(row, m, n, k);
  for (int d = 0; d < job.dims; ++d) us *= double(job.shape[d]);
  if (us < kHoldGilUs) {
    good = run(row, job, 1);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    good = run(row, job, num_threads());
    Py_END_ALLOW_THREADS;
  }
  if (good) return out;
  Py_DECREF(out);
  return PyErr_NoMemory();
}

// remember(row, a_signed, w_signed, packed, m, n, k)
PyObject* remember(PyObject*, PyObject* args) {
  int row, a_signed, w_signed, packed;
  Known entry;
  if (!PyArg_ParseTuple(args, "ipppnnn", &row, &a_signed, &w_signed, &packed, &entry.m, &entry.n, &entry.k))
    return nullptr;
  const RowList list = all_rows();
  if (row < 0 || row >= list.count || !cpu_runs(list.rows[row].isa) || list.rows[row].a_signed != bool(a_signed) ||
      list.rows[row].w_signed != bool(w_signed)) {
    PyErr_SetString(PyExc_ValueError, "remember: that row does not run these types here");
    return nullptr;
  }
  entry.kind = kind_of(a_signed, w_signed, packed);
  entry.row = row;
  slot_of(entry.m, entry.n, entry.k, entry.kind) = entry;
  Py_RETURN_NONE;
}

PyObject* forget(PyObject*, PyObject*) {
  memset(known, 0, sizeof known);
  Py_RETURN_NONE;
}

PyObject* watch(PyObject*, PyObject* variable) {
  Py_INCREF(variable);
  Py_XDECREF(pattern_variable);
  pattern_variable = variable;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {{"fast", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast)), METH_FASTCALL,
                          "fast(a, b, out) → the product, or None where Python must decide."},
                         {"remember", remember, METH_VARARGS,
                          "remember(row, a_signed, w_signed, packed, m, n, k): fast() runs this shape on this row."},
                         {"forget", forget, METH_NOARGS, "Forget every shape."},
                         {"watch", watch, METH_O, "watch(context_variable): fast() stands aside while it is not None."},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_call(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
