// linear of tensors without a detour: they are read, and the result is made, by the C functions that their class offers
// (dlpack_exchange.h). Nothing is copied, torch's dispatcher is not asked, torch is not linked. What is unusual is
// answered None, "ask Python".
//
//   fast_tensors(x, packed, bias, activation, residual, type)    x (…, k) float32 → (…, n) of `type`
#include "fast_call.h"
#include "fast_linear.h"
#include "tensors.h"

namespace qk {
namespace {

PyObject* fast_tensors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 6) return ask_python();
  PyTypeObject* const type = Py_TYPE(args[0]);
  const ExchangeApi* const api = api_of(args[0]);
  Tensor x, bias, residual;
  Epilogue e = {};
  idx n, k, m = 1;
  if (!api || !linear_sizes(args[1], &n, &k) || !reads(*api, type, args[0], &x) || x.shape[x.dims - 1] != k)
    return ask_python();
  int64_t shape[kMostDims];
  for (int d = 0; d < x.dims - 1; ++d) m *= shape[d] = x.shape[d];
  shape[x.dims - 1] = n;
  dlpack::DataType wanted;
  if (!linear_decided(args[1], m, kOfFloats) || !set_activation(e, args[3]) || !set_type(e, &wanted, args[5]))
    return ask_python();
  if (args[2] != Py_None) {
    if (!reads(*api, type, args[2], &bias) || bias.dims != 1 || bias.shape[0] != n) return ask_python();
    e.float_bias = static_cast<const float*>(bias.data);
  }
  if (args[4] != Py_None) {
    if (!reads(*api, type, args[4], &residual) || !same_shape(residual, x.dims, shape)) return ask_python();
    e.residual_type = Residual::f32, e.residual = residual.data;
  }
  MadeTensor made = {api};
  if (!made.make(wanted, x.dims, shape)) return nullptr;
  e.out = made.data();
  if (!linear_of_floats(args[1], static_cast<const float*>(x.data), m, e)) {
    made.drop();
    return PyErr_NoMemory();
  }
  return made.give();
}

// tensors_state(tensors): where they lie and how often they were written to; what is not a tensor counts as absent.
// Tensors made in inference mode do not say how often.
PyObject* tensors_state(PyObject*, PyObject* tensors) {
  constexpr Py_ssize_t kMost = 16;
  static PyObject* const version = PyUnicode_InternFromString("_version");
  uintptr_t state[2 * kMost] = {};
  if (!PyTuple_CheckExact(tensors) || PyTuple_GET_SIZE(tensors) > kMost) return ask_python();
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const one = PyTuple_GET_ITEM(tensors, i);
    if (one == Py_None) continue;
    const ExchangeApi* const api = api_of(one);
    Tensor t;
    if (!api || api->tensor_from_object(one, &t) != 0) return ask_python();
    state[2 * i] = reinterpret_cast<uintptr_t>(t.data) + t.byte_offset + 1;
    PyObject* const number = PyObject_GetAttr(one, version);
    if (number) state[2 * i + 1] = uintptr_t(PyLong_AsSsize_t(number)) + 1;
    Py_XDECREF(number);
    PyErr_Clear();
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(state), count * 2 * Py_ssize_t(sizeof state[0]));
}

PyMethodDef methods[] = {
    {"fast_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_tensors)), METH_FASTCALL,
     "fast_tensors(x, packed, bias, activation, residual, type) → a tensor, or None where Python must decide."},
    {"tensors_state", tensors_state, METH_O,
     "tensors_state(tensors) → bytes that change when a tensor is replaced or written to, or None."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_tensors(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
