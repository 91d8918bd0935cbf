// conv2d of the arguments of the last call with these weights, but of another image: a network's layer. Python has checked
// everything and made the call ready (bind_conv.h); what is left is to see that the arguments are the same, to make the
// result, and to run. Anything else is answered None, "ask Python".
//
//   conv_repeat(ready, x, bias, residual, fixed, shape, parts)   → a memo, which Python keeps in the PackedConv
//   fast_conv(x, weight, bias, residual, out, *fixed)            → a QTensor, or out
#include "fast_conv.h"

#include <string.h>

#include <memory>
#include <string>

#include "bind_conv.h"
#include "fast_arrays.h"
#include "fast_call.h"

#include <structmember.h>  // PyMemberDef before Python 3.12; after Python.h

namespace qk {
namespace {

constexpr int kMostDims = 5, kParts = 6;
constexpr const char* kRepeatName = "qkernels.conv_repeat";

// ---------------------------------------------------------------- Python's classes, whose slots are read and filled

enum Slot { kData, kScale, kZero, kDtype, kGrain, kScaleDtype, kFactors, kLibrary, kPacked, kSlots };
const char* const slot_names[kSlots] = {"_data",        "_scale",   "_zero",    "dtype",  "_grain",
                                        "_scale_dtype", "_factors", "_library", "_packed"};
PyTypeObject *tensor_type = nullptr, *packed_type = nullptr;
Py_ssize_t offsets[kSlots], repeat_offset;

PyObject*& at(PyObject* object, Py_ssize_t offset) {
  return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
}
PyObject* slot(PyObject* tensor, Slot which) { return at(tensor, offsets[which]); }

// The place of a slot that `__slots__` made.
bool find_slot(PyObject* type, const char* name, Py_ssize_t& offset) {
  Held descriptor{PyObject_GetAttrString(type, name)};
  if (!descriptor.object || Py_TYPE(descriptor.object) != &PyMemberDescr_Type) return false;
  offset = reinterpret_cast<PyMemberDescrObject*>(descriptor.object)->d_member->offset;
  return true;
}

// ---------------------------------------------------------------- what was said

bool same_text(PyObject* a, PyObject* b) {
  return a == b || (a && b && PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && PyUnicode_Compare(a, b) == 0);
}

// Of arguments that cannot change. What is equal but another object is Python's to compare.
bool same(PyObject* a, PyObject* b) {
  return a == b || (PyFloat_CheckExact(a) && PyFloat_CheckExact(b) && PyFloat_AS_DOUBLE(a) == PyFloat_AS_DOUBLE(b));
}

// 8-bit codes of one scale, C contiguous: what they mean, and the array's shape.
struct Codes {
  int dims = 0, kind = -1;
  Py_ssize_t shape[kMostDims];
  float scale;
  long zero;
  const uint8_t* data;

  bool reads(PyObject* object) {
    View v;
    if (Py_TYPE(object) != tensor_type) return false;
    PyObject *codes = slot(object, kData), *by = slot(object, kScale), *shift = slot(object, kZero);
    if (!codes || !by || !shift || !PyLong_CheckExact(shift) || !is_exact_array(by) || !is_float32(by)) return false;
    kind = kind_of(codes, v);
    if (kind < 0 || kind > 1 || v.dims > kMostDims || view_of(by).dims != 0) return false;
    dims = v.dims, data = v.data;
    for (int d = 0; d < dims; ++d) shape[d] = v.shape[d];
    memcpy(&scale, view_of(by).data, sizeof scale);
    zero = PyLong_AsLong(shift);
    return true;
  }

  idx bytes() const {
    idx n = 1;
    for (int d = 0; d < dims; ++d) n *= shape[d];
    return n;
  }

  bool means(const Codes& other) const {
    return dims == other.dims && kind == other.kind && scale == other.scale && zero == other.zero &&
           memcmp(shape, other.shape, size_t(dims) * sizeof *shape) == 0;
  }
};

struct Repeat {
  Held ready, fixed, parts;
  const ConvReady* conv;
  Codes x, residual;
  bool has_residual = false;
  int bias_kind = -1;  // none
  std::string bias;
  int dims, type;
  Py_ssize_t shape[kMostDims];

  bool same_bias(PyObject* object) const {
    View v;
    if (object == Py_None) return bias_kind < 0;
    return kind_of(object, v) == bias_kind && v.dims == 1 &&
           size_t(v.shape[0] * kinds[bias_kind].bytes) == bias.size() && memcmp(v.data, bias.data(), bias.size()) == 0;
  }
};

Repeat* repeat_of(PyObject* capsule) {
  return PyCapsule_IsValid(capsule, kRepeatName) ? static_cast<Repeat*>(PyCapsule_GetPointer(capsule, kRepeatName))
                                                 : nullptr;
}

// conv_repeat(ready, x, bias, residual, fixed, shape, parts)
PyObject* conv_repeat(PyObject*, PyObject* args) {
  PyObject *ready, *x, *bias, *residual, *fixed, *shape, *parts;
  if (!PyArg_ParseTuple(args, "OOOOO!O!O!", &ready, &x, &bias, &residual, &PyTuple_Type, &fixed, &PyTuple_Type, &shape,
                        &PyTuple_Type, &parts))
    return nullptr;
  auto r = std::make_unique<Repeat>();
  View v;
  r->conv = conv_ready_of(ready);
  r->dims = int(PyTuple_GET_SIZE(shape));
  if (!tensor_type || !r->conv || !r->x.reads(x) || r->dims > kMostDims || PyTuple_GET_SIZE(parts) != kParts)
    Py_RETURN_NONE;
  if (bias != Py_None) {
    r->bias_kind = kind_of(bias, v);
    if (r->bias_kind < 0 || v.dims != 1) Py_RETURN_NONE;
    r->bias.assign(reinterpret_cast<const char*>(v.data), size_t(v.shape[0] * kinds[r->bias_kind].bytes));
  }
  r->has_residual = residual != Py_None;
  if (r->has_residual && !r->residual.reads(residual)) Py_RETURN_NONE;
  for (int d = 0; d < r->dims; ++d) r->shape[d] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, d));
  PyObject* const dtype = PyTuple_GET_ITEM(parts, 2);
  r->type = same_text(dtype, slot(x, kDtype)) ? kinds[r->x.kind].numpy : -1;
  if (PyErr_Occurred()) return nullptr;
  if (r->type < 0) Py_RETURN_NONE;  // another type than the image's
  Py_INCREF(r->ready.object = ready);
  Py_INCREF(r->fixed.object = fixed);
  Py_INCREF(r->parts.object = parts);
  return PyCapsule_New(r.release(), kRepeatName, [](PyObject* self) { delete repeat_of(self); });
}

// ---------------------------------------------------------------- the call

PyObject* memo_of(PyObject* weight) {
  if (Py_TYPE(weight) == tensor_type) weight = slot(weight, kPacked);
  return weight && Py_TYPE(weight) == packed_type ? at(weight, repeat_offset) : nullptr;
}

void fill(PyObject* tensor, Slot which, PyObject* value) {
  Py_INCREF(value);
  at(tensor, offsets[which]) = value;
}

// May the result be written there?
bool fits(const Repeat& r, PyObject* out, const Codes& x, const Codes* residual) {
  View v;
  const int kind = kind_of(out, v);
  if (kind < 0 || kinds[kind].numpy != r.type || !v.writeable || v.dims != r.dims) return false;
  if (memcmp(v.shape, r.shape, size_t(r.dims) * sizeof *r.shape) != 0) return false;
  const auto apart = [&](const Codes& y) { return v.data + size_of(v) <= y.data || y.data + y.bytes() <= v.data; };
  return apart(x) && (!residual || apart(*residual));
}

// A QTensor as `QTensor._make` makes it; the codes' reference is given away.
PyObject* tensor_of(Held& codes, PyObject* parts, PyObject* library) {
  PyObject* const made = tensor_type->tp_alloc(tensor_type, 0);
  if (!made) return nullptr;
  at(made, offsets[kData]) = codes.give();
  for (int i = 0; i < kParts; ++i) fill(made, Slot(kScale + i), PyTuple_GET_ITEM(parts, i));
  fill(made, kLibrary, library);
  fill(made, kPacked, Py_None);
  return made;
}

// fast_conv(x, weight, bias, residual, out, *fixed)
PyObject* fast_conv(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr int kOwn = 5;
  PyObject* const memo = tensor_type && count >= kOwn ? memo_of(args[1]) : nullptr;
  const Repeat* const r = memo ? repeat_of(memo) : nullptr;
  if (!r || PyTuple_GET_SIZE(r->fixed.object) != count - kOwn || use_in_force()) return decline();
  for (Py_ssize_t i = kOwn; i < count; ++i)
    if (!same(args[i], PyTuple_GET_ITEM(r->fixed.object, i - kOwn))) return decline();
  Codes x, residual;
  if (!x.reads(args[0]) || !x.means(r->x) || !r->same_bias(args[2])) return decline();
  if ((args[3] != Py_None) != r->has_residual) return decline();
  if (r->has_residual && (!residual.reads(args[3]) || !residual.means(r->residual))) return decline();
  PyObject* const out = args[4] == Py_None ? nullptr : args[4];
  if (out && !fits(*r, out, x, r->has_residual ? &residual : nullptr)) return decline();
  Py_XINCREF(out);
  Py_INCREF(memo);  // another thread may remember another call meanwhile
  Held alive{memo}, codes{out ? out : new_array(r->dims, r->shape, r->type)};
  if (!codes.object) return nullptr;
  bool good;
  Py_BEGIN_ALLOW_THREADS;
  good = run_conv_ready(*r->conv, x.data, data_of(codes), r->has_residual ? residual.data : nullptr);
  Py_END_ALLOW_THREADS;
  if (!good) return PyErr_NoMemory();
  if (out) return codes.give();
  make_read_only(codes);
  return tensor_of(codes, r->parts.object, slot(args[0], kLibrary));
}

// conv_types(QTensor, PackedConv)
PyObject* conv_types(PyObject*, PyObject* args) {
  PyObject *tensor, *packed;
  if (!PyArg_ParseTuple(args, "O!O!", &PyType_Type, &tensor, &PyType_Type, &packed)) return nullptr;
  Py_ssize_t found[kSlots], repeat;
  bool good = find_slot(packed, "_repeat", repeat);
  for (int i = 0; i < kSlots; ++i) good = good && find_slot(tensor, slot_names[i], found[i]);
  if (!good) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "conv_types: a slot is missing");
    return nullptr;
  }
  Py_INCREF(tensor);  // for ever
  Py_INCREF(packed);
  memcpy(offsets, found, sizeof offsets);
  repeat_offset = repeat;
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor), packed_type = reinterpret_cast<PyTypeObject*>(packed);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"fast_conv", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_conv)), METH_FASTCALL,
     "fast_conv(x, weight, bias, residual, out, *fixed) → a QTensor, out, or None where Python must decide."},
    {"conv_repeat", conv_repeat, METH_VARARGS,
     "conv_repeat(ready, x, bias, residual, fixed, shape, parts): what fast_conv compares a call with, or None."},
    {"conv_types", conv_types, METH_VARARGS, "conv_types(QTensor, PackedConv): the classes whose slots are read."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_conv(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
