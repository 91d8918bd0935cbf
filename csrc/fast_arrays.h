// What a short way in reads of NumPy's arrays and Python's numbers, and makes of them: plain C contiguous arrays of known
// types, whole numbers in a range, new arrays. Nothing here raises; false, null and −1 say "ask Python".
#pragma once
#include "cpu/elements.h"
#include "views.h"

namespace qk {

using pybind11::detail::npy_api;

struct ElementKind {
  int numpy;
  idx bytes;
  const char* letters;
};
constexpr ElementKind kinds[] = {
    {npy_api::NPY_BYTE_, 1, "s8"},    {npy_api::NPY_UBYTE_, 1, "u8"},
    {npy_api::NPY_SHORT_, 2, "s16"},  {npy_api::NPY_USHORT_, 2, "u16"},
    {npy_api::NPY_INT_, 4, "s32"},    {npy_api::NPY_FLOAT_, 4, "f32"},
    {npy_api::NPY_DOUBLE_, 8, "f64"}, {23, 2, "f16"}};  // NPY_HALF: pybind11 does not name it
constexpr int kS32 = 4, kF32 = 5, kF64 = 6, kKinds = 8;

struct CodeType {
  int32_t low, high;
  int kind;
};
constexpr CodeType code_types[] = {{-128, 127, 0}, {0, 255, 1}, {-8, 7, 0},         {0, 15, 1},
                                   {-2, 1, 0},     {0, 3, 1},   {-32768, 32767, 2}, {0, 65535, 3}};  // CODE_TYPES
constexpr int kCodeTypes = 8;

// Of a plain, C contiguous array in native byte order; −1 for anything else.
inline int kind_of(PyObject* object, View& v) {
  namespace detail = pybind11::detail;
  if (!is_exact_array(object)) return -1;
  const auto* descr = detail::array_descriptor_proxy(detail::array_proxy(object)->descr);
  if (descr->byteorder == '>') return -1;
  v = view_of(object);
  for (int i = 0; i < kKinds; ++i)
    if (kinds[i].numpy == descr->type_num) return v.dims <= kMaxBatchDims && adjacent(v, kinds[i].bytes) ? i : -1;
  return -1;
}

inline idx size_of(const View& v) {
  idx size = 1;
  for (int d = 0; d < v.dims; ++d) size *= v.shape[d];
  return size;
}

// A whole number in [low, high].
inline bool whole_of(PyObject* object, int32_t low, int32_t high, int32_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  const long given = PyLong_AsLongAndOverflow(object, &overflow);
  value = int32_t(given);
  return !overflow && given >= low && given <= high;
}

// The codes' type; null for no such number.
inline const CodeType* code_type_of(PyObject* object) {
  int32_t index;
  return whole_of(object, 0, kCodeTypes - 1, index) ? &code_types[index] : nullptr;
}

// The array as rows and inner, the scales of `axes` placed (kernel.py, Scales), and their number: 0, one for all.
inline bool place(const View& x, PyObject* axes, Elementwise& job, idx& scales) {
  const idx size = size_of(x);
  scales = 0;
  job.rows = 1, job.inner = size, job.at = {1, 1, 1, size};
  if (size < 1) return false;
  if (axes == Py_None) return true;
  idx first, last;
  if (PyTuple_CheckExact(axes)) {
    const Py_ssize_t count = PyTuple_GET_SIZE(axes);
    if (count == 0) return true;
    for (Py_ssize_t i = 0; i < count; ++i) {
      int32_t axis;
      if (!whole_of(PyTuple_GET_ITEM(axes, i), 0, x.dims - 1, axis)) return false;
      if (i == 0) first = axis;
      else if (axis != last + 1) return false;
      last = axis;
    }
  } else {
    int32_t axis;
    if (!whole_of(axes, -x.dims, x.dims - 1, axis)) return false;
    first = last = axis < 0 ? axis + x.dims : axis;
  }
  idx inner = 1;
  scales = 1;
  for (idx d = last + 1; d < x.dims; ++d) inner *= x.shape[d];
  for (idx d = first; d <= last; ++d) scales *= x.shape[d];
  if (inner == 1) job.inner = scales, job.rows = size / scales, job.at = {1, scales, 1, 1};
  else job.inner = inner, job.rows = size / inner, job.at = {scales, 1, 1, inner};
  return true;
}

// A reference of ours, dropped where it is not given away.
struct Held {
  PyObject* object = nullptr;
  ~Held() { Py_XDECREF(object); }
  PyObject* give() {
    PyObject* const given = object;
    object = nullptr;
    return given;
  }
};

inline PyObject* new_array(int dims, const Py_ssize_t* shape, int type) {
  const npy_api& api = npy_api::get();
  PyObject* descr = api.PyArray_DescrFromType_(type);
  return api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, dims, const_cast<Py_ssize_t*>(shape), nullptr, nullptr, 0,
                                   nullptr);
}

inline void* data_of(const Held& array) { return pybind11::detail::array_proxy(array.object)->data; }

inline void make_read_only(const Held& array) {
  pybind11::detail::array_proxy(array.object)->flags &= ~npy_api::NPY_ARRAY_WRITEABLE_;
}

// Does the C library ask the system for an array of that size each time? (Its threshold adapts up to here.)
constexpr idx kFreshBytes = 32 << 20;

inline PyObject* decline() {
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

}  // namespace qk
