// NumPy arrays as plain views, and views as a Job. Reads the array object's fields, as NumPy's own macros do; the
// layout of those fields is pybind11's knowledge (its proxies follow NumPy 1 and 2).
#pragma once
#include <pybind11/numpy.h>

#include "cpu/features.h"
#include "cpu/plan.h"

namespace qk {

constexpr const char* kPackedName = "qkernels.packed";

struct Packed {
  const uint8_t* data;
  const int32_t* sums;
  idx k, n;
  bool is_signed;
  bool narrow;  // Gemm::w_narrow
};

enum ElementType { kInt8, kUint8, kInt32, kOther };

struct View {
  uint8_t* data = nullptr;  // null: not an array
  int dims = 0;
  const Py_ssize_t* shape = nullptr;
  const Py_ssize_t* strides = nullptr;  // bytes
  ElementType type = kOther;
  bool writeable = false, aligned = false;
};

inline bool is_byte(const View& v, bool is_signed) { return v.type == (is_signed ? kInt8 : kUint8); }
inline bool is_int32(const View& v) { return v.type == kInt32; }

inline View view_of(PyObject* object) {
  namespace detail = pybind11::detail;
  View v;
  if (!detail::npy_api::get().PyArray_Check_(object)) return v;
  const auto* array = detail::array_proxy(object);
  const auto* descr = detail::array_descriptor_proxy(array->descr);
  v.data = reinterpret_cast<uint8_t*>(array->data);
  v.dims = array->nd;
  v.shape = array->dimensions;
  v.strides = array->strides;
  const bool native = descr->byteorder == '=' || descr->byteorder == '|';
  const char kind = descr->kind;
  const int type = descr->type_num;
  if (type == detail::npy_api::NPY_BYTE_) v.type = kInt8;
  else if (type == detail::npy_api::NPY_UBYTE_) v.type = kUint8;
  else if (native && kind == 'i' &&
           (type == detail::npy_api::NPY_INT_ || (sizeof(long) == 4 && type == detail::npy_api::NPY_LONG_)))
    v.type = kInt32;
  v.writeable = array->flags & detail::npy_api::NPY_ARRAY_WRITEABLE_;
  v.aligned = array->flags & detail::npy_api::NPY_ARRAY_ALIGNED_;
  return v;
}

inline bool is_exact_array(PyObject* object) {
  return Py_TYPE(object) == pybind11::detail::npy_api::get().PyArray_Type_;
}

inline bool is_float32(PyObject* array) {
  namespace detail = pybind11::detail;
  const auto* descr = detail::array_descriptor_proxy(detail::array_proxy(array)->descr);
  return descr->type_num == detail::npy_api::NPY_FLOAT_ && descr->byteorder != '>';
}

// C contiguous, aligned.
inline bool adjacent(const View& v, idx bytes) {
  idx step = bytes;
  for (int d = v.dims - 1; d >= 0; step *= v.shape[d--])
    if (v.shape[d] != 1 && v.strides[d] != step) return false;
  return v.aligned;
}

inline bool overlap(const View& x, idx x_bytes, const View& y, idx y_bytes) {
  return x.data && y.data && x.data < y.data + y_bytes && y.data < x.data + x_bytes;
}

// Null for anything else than our capsule.
inline const Packed* packed_of(PyObject* object) {
  return PyCapsule_IsValid(object, kPackedName) ? static_cast<const Packed*>(PyCapsule_GetPointer(object, kPackedName))
                                                : nullptr;
}

inline bool same_batch(const View& x, const View& out) {
  if (x.dims != out.dims) return false;
  for (int d = 0; d < out.dims - 2; ++d)
    if (x.shape[d] != out.shape[d]) return false;
  return true;
}

inline bool set_shapes(Job& job, const View& a, const View& out) {
  if (!same_batch(a, out)) return false;
  const int d = out.dims - 2;
  const idx m = out.shape[d], n = out.shape[d + 1], k = a.shape[d + 1];
  if (a.shape[d] != m || m < 1 || n < 1 || k < 1) return false;
  if ((out.strides[d + 1] != 4 && n > 1) || out.strides[d] % 4 != 0) return false;
  Gemm& g = job.one;
  g.m = m, g.n = n, g.k = k;
  g.a = a.data, g.a_row = a.strides[d], g.a_col = a.strides[d + 1];
  g.out = reinterpret_cast<int32_t*>(out.data), g.out_row = out.strides[d] / 4;
  job.dims = d;
  for (int i = 0; i < d; ++i) job.shape[i] = out.shape[i], job.a[i] = a.strides[i], job.out[i] = out.strides[i];
  return true;
}

inline void set_packed(Job& job, const Packed& w) {
  job.one.w = w.data;
  job.one.w_sums = w.sums;
  job.one.w_narrow = w.narrow;
  job.one.w_panel = padded(w.k, kPackedK) * kPanel;
}

inline bool set_plain(Job& job, const View& b, const View& out) {
  if (!same_batch(b, out)) return false;
  const int d = job.dims;
  if (b.shape[d] != job.one.k || b.shape[d + 1] != job.one.n) return false;
  job.plain = b.data, job.plain_row = b.strides[d], job.plain_col = b.strides[d + 1];
  for (int i = 0; i < d; ++i) job.w[i] = b.strides[i];
  return true;
}

// None, or int32 of out.shape[:-1] (of a), of out.shape[:-2] + (n,) (of b)
inline bool set_zero(Job& job, PyObject* object, const View& out, bool of_a) {
  if (object == Py_None) return true;
  const View z = view_of(object);
  const int d = job.dims;
  if (!z.data || !is_int32(z) || !z.aligned || z.dims != d + 1) return false;
  if (z.shape[d] != (of_a ? job.one.m : job.one.n)) return false;
  for (int i = 0; i < d; ++i) {
    if (z.shape[i] != out.shape[i]) return false;
    (of_a ? job.a_zero : job.w_zero)[i] = z.strides[i];
  }
  (of_a ? job.one.a_zero : job.one.w_zero) = reinterpret_cast<const int32_t*>(z.data);
  (of_a ? job.a_zero_step : job.w_zero_step) = z.strides[d];
  return true;
}

template <class Product>  // Gemm or Int4
inline void set_caches(Product& g) {
  static const idx l1 = cache_bytes(1), l2 = cache_bytes(2);
  g.l1_bytes = l1, g.l2_bytes = l2;
}

}  // namespace qk
