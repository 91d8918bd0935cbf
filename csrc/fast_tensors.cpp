// linear of tensors without a detour: they are read, and the result is made, by the C functions that their class offers
// (dlpack_exchange.h). Nothing is copied, torch's dispatcher is not asked, torch is not linked. What is unusual is
// answered None, "ask Python".
//
//   fast_tensors(x, packed, bias, activation, residual, type)    x (…, k) float32 → (…, n) of `type`
#include "cpu/threads.h"
#include "dlpack_exchange.h"
#include "fast_call.h"
#include "fast_linear.h"
#include "views.h"

namespace qk {
namespace {

using dlpack::ExchangeApi;
using dlpack::Tensor;

constexpr int kMostDims = 8;
constexpr dlpack::DataType kFloat32 = {dlpack::kFloat, 32, 1};

// That of the class that came last: a process has one class of tensors. Under the GIL.
const ExchangeApi* api_of(PyObject* x) {
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

// x as float32 in host memory, adjacent.
bool reads(const ExchangeApi& api, PyTypeObject* type, PyObject* object, Tensor* x) {
  if (Py_TYPE(object) != type || api.tensor_from_object(object, x) != 0) return false;
  if (x->device.type != dlpack::kCpu || x->dims < 1 || x->dims > kMostDims) return false;
  if (x->type.code != kFloat32.code || x->type.bits != kFloat32.bits || x->type.lanes != 1) return false;
  x->data = static_cast<char*>(x->data) + x->byte_offset;
  if (uintptr_t(x->data) % 4) return false;
  int64_t step = 1;
  for (int d = x->dims - 1; d >= 0 && x->strides; step *= x->shape[d--])
    if (x->shape[d] != 1 && x->strides[d] != step) return false;
  return true;
}

// None, a Curve's number, or (lowest, highest), as Python has checked it.
bool set_activation(Epilogue& e, PyObject* activation) {
  if (activation == Py_None) return true;
  if (PyLong_CheckExact(activation)) {
    e.curve = Curve(PyLong_AsLong(activation));
    return e.curve > Curve::none && e.curve <= Curve::tanh;
  }
  if (!PyTuple_CheckExact(activation) || PyTuple_GET_SIZE(activation) != 2) return false;
  PyObject *low = PyTuple_GET_ITEM(activation, 0), *high = PyTuple_GET_ITEM(activation, 1);
  if (!PyFloat_CheckExact(low) || !PyFloat_CheckExact(high)) return false;
  e.clamps = true;
  e.clamp_low = float(PyFloat_AS_DOUBLE(low)), e.clamp_high = float(PyFloat_AS_DOUBLE(high));
  return true;
}

// `type`: "float32", "float16" or "bfloat16", one of Python's interned names.
bool set_type(Epilogue& e, dlpack::DataType* type, PyObject* name) {
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

void set_error(void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); }

PyObject* ask_python() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

PyObject* fast_tensors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 6) return ask_python();
  PyTypeObject* const type = Py_TYPE(args[0]);
  const ExchangeApi* const api = api_of(args[0]);
  Tensor x, bias, residual, like = {};
  Epilogue e = {};
  idx n, k, m = 1;
  if (!api || !linear_sizes(args[1], &n, &k) || !reads(*api, type, args[0], &x) || x.shape[x.dims - 1] != k)
    return ask_python();
  int64_t shape[kMostDims];
  for (int d = 0; d < x.dims - 1; ++d) m *= shape[d] = x.shape[d];
  shape[x.dims - 1] = n;
  if (!linear_decided(args[1], m) || !set_activation(e, args[3]) || !set_type(e, &like.type, args[5]))
    return ask_python();
  if (args[2] != Py_None) {
    if (!reads(*api, type, args[2], &bias) || bias.dims != 1 || bias.shape[0] != n) return ask_python();
    e.float_bias = static_cast<const float*>(bias.data);
  }
  if (args[4] != Py_None) {
    if (!reads(*api, type, args[4], &residual) || residual.dims != x.dims) return ask_python();
    for (int d = 0; d < x.dims; ++d)
      if (residual.shape[d] != shape[d]) return ask_python();
    e.residual_type = Residual::f32, e.residual = residual.data;
  }
  like.device = {dlpack::kCpu, 0}, like.dims = x.dims, like.shape = shape;
  dlpack::Managed* made = nullptr;
  if (api->allocate(&like, &made, nullptr, set_error) != 0) return nullptr;
  e.out = static_cast<char*>(made->tensor.data) + made->tensor.byte_offset;
  if (!linear_of_floats(args[1], static_cast<const float*>(x.data), m, e)) {
    if (made->deleter) made->deleter(made);
    return PyErr_NoMemory();
  }
  void* result;
  return api->object_from_managed(made, &result) == 0 ? static_cast<PyObject*>(result) : nullptr;
}

PyMethodDef methods[] = {
    {"fast_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_tensors)), METH_FASTCALL,
     "fast_tensors(x, packed, bias, activation, residual, type) → a tensor, or None where Python must decide."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_tensors(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
