// Tensors as the short ways in read and make them: by the C functions that their class offers (dlpack_exchange.h).
// Nothing here raises; false and null say "ask Python".
#pragma once
#include <pybind11/pybind11.h>

#include "dlpack_exchange.h"
#include "epilogue.h"
#include "linear.h"

namespace qk {

using dlpack::ExchangeApi;
using dlpack::Tensor;

constexpr int kMostDims = 8;
constexpr dlpack::DataType kFloat32 = {dlpack::kFloat, 32, 1};

// That of the class that came last: a process has one class of tensors. Under the GIL.
inline const ExchangeApi* api_of(PyObject* x) {
  static PyTypeObject* known = nullptr;
  static const ExchangeApi* api = nullptr;
  PyTypeObject* const type = Py_TYPE(x);
  if (type == known) return api;
  PyObject* const capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), dlpack::kAttribute);
  const ExchangeApi* found = nullptr;
  if (capsule && PyCapsule_IsValid(capsule, dlpack::kCapsule))
    found = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
  Py_XDECREF(capsule);
  PyErr_Clear();
  while (found && found->version.major > 1) found = found->previous;
  if (!found || found->version.major != 1 || !found->tensor_from_object) return nullptr;
  Py_INCREF(type);
  Py_XDECREF(known);
  known = type;
  return api = found;
}

inline bool is_type(const Tensor& x, dlpack::DataType type) {
  return x.type.code == type.code && x.type.bits == type.bits && x.type.lanes == 1;
}

// In host memory, adjacent, aligned for `bytes`.
inline bool reads_any(const ExchangeApi& api, PyTypeObject* type, PyObject* object, Tensor* x, idx bytes) {
  if (Py_TYPE(object) != type || api.tensor_from_object(object, x) != 0) return false;
  if (x->device.type != dlpack::kCpu || x->dims < 1 || x->dims > kMostDims) return false;
  x->data = static_cast<char*>(x->data) + x->byte_offset;
  if (uintptr_t(x->data) % bytes) return false;
  int64_t step = 1;
  for (int d = x->dims - 1; d >= 0 && x->strides; step *= x->shape[d--])
    if (x->shape[d] != 1 && x->strides[d] != step) return false;
  return true;
}

inline bool reads(const ExchangeApi& api, PyTypeObject* type, PyObject* object, Tensor* x) {
  return reads_any(api, type, object, x, 4) && is_type(*x, kFloat32);
}

// None, a Curve's number, or (lowest, highest), as Python has checked it.
inline bool set_activation(Epilogue& e, PyObject* activation) {
  if (PyLong_CheckExact(activation)) {
    e.curve = Curve(PyLong_AsLong(activation));
    return e.curve > Curve::none && e.curve <= Curve::tanh;
  }
  return set_clamp(e, activation);
}

// `type`: "float32", "float16" or "bfloat16", one of Python's interned names.
inline bool set_type(Epilogue& e, dlpack::DataType* type, PyObject* name) {
  if (!PyUnicode_Check(name)) return false;
  const char first = PyUnicode_GET_LENGTH(name) ? char(PyUnicode_READ_CHAR(name, 0)) : 0;
  if (first == 'b' && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0)
    e.type = Written::bf16, *type = {dlpack::kBfloat, 16, 1};
  else if (PyUnicode_CompareWithASCIIString(name, "float32") == 0) e.type = Written::f32, *type = kFloat32;
  else if (PyUnicode_CompareWithASCIIString(name, "float16") == 0)
    e.type = Written::f16, *type = {dlpack::kFloat, 16, 1};
  else return false;
  return true;
}

inline void set_error(void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); }

inline PyObject* ask_python() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

// Of the same sizes?
inline bool same_shape(const Tensor& x, int dims, const int64_t* shape) {
  bool same = x.dims == dims;
  for (int d = 0; d < dims && same; ++d) same = x.shape[d] == shape[d];
  return same;
}

// A new tensor, x's shape with `n` columns; null with an exception.
struct MadeTensor {
  const ExchangeApi* api;
  dlpack::Managed* made = nullptr;

  bool make(dlpack::DataType type, int dims, int64_t* shape) {
    Tensor like = {};
    like.device = {dlpack::kCpu, 0}, like.type = type, like.dims = dims, like.shape = shape;
    return api->allocate(&like, &made, nullptr, set_error) == 0;
  }
  void* data() const { return static_cast<char*>(made->tensor.data) + made->tensor.byte_offset; }
  void drop() const {
    if (made->deleter) made->deleter(made);
  }
  PyObject* give() const {
    void* result;
    return api->object_from_managed(made, &result) == 0 ? static_cast<PyObject*>(result) : nullptr;
  }
};

}  // namespace qk
