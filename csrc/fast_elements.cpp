// The elementwise ops without a detour, as fast_call.cpp: Python has decided which row runs types and sizes like these.
// What is unusual is answered None, "ask Python", and so is everything that Python would refuse.
//
//   fast_quantize(x, scale, zero, dtype, axes)                            → (codes, scale)
//   fast_dequantize(codes, scale, zero, axes)                             → float32
//   fast_dynamic(x, dtype, per_row)                                       → (codes, scale, zero)
//   fast_requantize(acc, scale, zero, dtype, axes, bias, rounding, out)   → codes
//   fast_pair(product, a, a_scale, a_zero, b, b_scale, b_zero, scale, zero)   → (codes, scale)
//
// scale: a float where axes is None or (), else an array of one axis, or of adjacent ones. dtype and rounding: places in
// dtypes.CODE_TYPES and rounding.ROUNDINGS. What becomes a QTensor is read-only.
#include "fast_elements.h"

#include <string.h>

#include "cpu/environment.h"
#include "cpu/threads.h"
#include "fast_arrays.h"
#include "fast_call.h"

namespace qk {
namespace {

constexpr uint32_t kKnown = 1024;
constexpr idx kHoldGil = 1 << 14;  // elements: fewer are not worth two GIL switches

enum Op { kQuantize, kDequantize, kDynamic, kRequantize, kAdd, kMul, kOps };
const char* const op_names[kOps] = {"quantize", "dequantize", "dynamic_quantize", "requantize", "add", "mul"};

// ---------------------------------------------------------------- which row

struct Known {
  idx rows, inner;
  uint32_t key;  // of op and types; 0: empty
  int row;
};
Known known[kKnown] = {};

uint32_t key_of(int op, int in, int out) { return uint32_t(1 + (op * kKinds + in) * kKinds + out); }

Known& slot_of(idx rows, idx inner, uint32_t key) {
  uint64_t hash = uint64_t(rows) * 0x9E3779B97F4A7C15u ^ uint64_t(inner) * 0xC2B2AE3D27D4EB4Fu;
  hash = (hash ^ key) * 0xD6E8FEB86659FD93u;
  return known[hash >> 54];
}
static_assert(kKnown == 1u << (64 - 54), "the hash fills the table");

const ElementwiseRow* row_for(int op, int in, int out, const Elementwise& job) {
  const uint32_t key = key_of(op, in, out);
  const Known entry = slot_of(job.rows, job.inner, key);
  if (entry.key != key || entry.rows != job.rows || entry.inner != job.inner || use_in_force()) return nullptr;
  return &elementwise_row(entry.row);
}

// ---------------------------------------------------------------- reading arguments

// Is v one value for each of the axes' indices, shaped as they are?
bool along(const View& v, const View& x, PyObject* axes) {
  if (!PyTuple_CheckExact(axes)) return v.dims == 1;
  if (v.dims != PyTuple_GET_SIZE(axes)) return false;
  for (int d = 0; d < v.dims; ++d)
    if (v.shape[d] != x.shape[PyLong_AsSsize_t(PyTuple_GET_ITEM(axes, d))]) return false;
  return true;
}

void start(const ElementwiseRow& row, Elementwise job) {
  job.fresh &= job.rows * job.inner * row.out_bytes > kFreshBytes;
  if (job.rows * job.inner < kHoldGil) return run(row, job, 1, false);
  Py_BEGIN_ALLOW_THREADS;
  run(row, job, num_threads(), false);
  Py_END_ALLOW_THREADS;
}

// ---------------------------------------------------------------- quantize, dequantize

bool usable(float scale) { return scale > 0 && is_finite(scale); }

// The scales as an array of their own, float32, each finite and > 0.
bool copy_scale(PyObject* object, const View& x, PyObject* axes, idx scales, Held& kept) {
  if (!scales) {
    if (!PyFloat_Check(object) || !(kept.object = new_array(0, nullptr, npy_api::NPY_FLOAT_))) return false;
    const float scale = float(PyFloat_AS_DOUBLE(object));
    *static_cast<float*>(data_of(kept)) = scale;
    return usable(scale);
  }
  View v;
  if (kind_of(object, v) != kF32 || size_of(v) != scales || !along(v, x, axes)) return false;
  if (!(kept.object = new_array(v.dims, v.shape, npy_api::NPY_FLOAT_))) return false;
  float* const to = static_cast<float*>(data_of(kept));
  const float* const from = reinterpret_cast<const float*>(v.data);
  bool good = true;
  for (idx i = 0; i < scales; ++i) {
    to[i] = from[i];
    good &= usable(to[i]);
  }
  return good;
}

// Zero points for `count` scales as kernels take them, in scratch; null for 0. An int or, of one axis or more, an array
// of the codes' type.
bool read_zero(PyObject* object, const CodeType& type, idx count, const View& x, PyObject* axes, const int32_t*& zero) {
  zero = nullptr;
  int32_t one = 0;
  View v;
  const bool whole = object == Py_None || whole_of(object, type.low, type.high, one);
  if (!whole && (kind_of(object, v) != type.kind || size_of(v) != count || !along(v, x, axes))) return false;
  if (whole && !one) return true;
  int32_t* const values = static_cast<int32_t*>(thread_scratch(kZeroScratch, size_t(count) * 4));
  if (!values) return false;
  bool good = true;
  for (idx i = 0; i < count; ++i) {
    values[i] = whole            ? one
                : type.kind == 0 ? reinterpret_cast<const int8_t*>(v.data)[i]
                : type.kind == 1 ? v.data[i]
                : type.kind == 2 ? reinterpret_cast<const int16_t*>(v.data)[i]
                                 : reinterpret_cast<const uint16_t*>(v.data)[i];
    good &= values[i] >= type.low && values[i] <= type.high;
  }
  zero = values;
  return good;
}

PyObject* fast_quantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  View x;
  Elementwise job = {};
  idx scales;
  Held codes, scale;
  const CodeType* const type = count == 5 ? code_type_of(args[3]) : nullptr;
  const int in = type ? kind_of(args[0], x) : -1;
  if (in < 0 || !place(x, args[4], job, scales)) return decline();
  const ElementwiseRow* const row = row_for(kQuantize, in, type->kind, job);
  const FloatEnvironment exact;
  if (!row || !(scales || args[2] == Py_None || PyLong_CheckExact(args[2])) ||
      !copy_scale(args[1], x, args[4], scales, scale) ||
      !read_zero(args[2], *type, max_of(scales, 1), x, args[4], job.zero) ||
      !(codes.object = new_array(x.dims, x.shape, kinds[type->kind].numpy)))
    return decline();
  job.in = x.data, job.out = data_of(codes);
  job.scale = static_cast<const float*>(data_of(scale));
  job.low = type->low, job.high = type->high;
  job.fresh = true;
  start(*row, job);
  make_read_only(codes), make_read_only(scale);
  return PyTuple_Pack(2, codes.object, scale.object);
}

PyObject* fast_dequantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  View q, s;
  Elementwise job = {};
  idx scales;
  Held values;
  const int in = count == 4 ? kind_of(args[0], q) : -1;
  if (in < 0 || in > 3 || kind_of(args[1], s) != kF32 || !place(q, args[3], job, scales)) return decline();
  const CodeType any = {kInt32Min, kInt32Max, in};  // checked when the QTensor was made
  const ElementwiseRow* const row = row_for(kDequantize, in, kF32, job);
  if (!row || size_of(s) != max_of(scales, 1) || !read_zero(args[2], any, max_of(scales, 1), q, args[3], job.zero) ||
      !(values.object = new_array(q.dims, q.shape, npy_api::NPY_FLOAT_)))
    return decline();
  job.in = q.data, job.out = data_of(values);
  job.scale = reinterpret_cast<const float*>(s.data);
  job.fresh = true;
  start(*row, job);
  return values.give();
}

PyObject* fast_dynamic(PyObject*, PyObject* const* args, Py_ssize_t count) {
  View x;
  Elementwise job = {};
  Held codes, scale, zero;
  const CodeType* const type = count == 3 ? code_type_of(args[1]) : nullptr;
  const int in = type ? kind_of(args[0], x) : -1;
  if (in < 0) return decline();
  const bool by_row = args[2] == Py_True, is_signed = type->low < 0;
  const idx size = size_of(x);
  if (size < 1 || (by_row && x.dims < 1)) return decline();
  job.inner = by_row ? x.shape[x.dims - 1] : size, job.rows = size / job.inner;
  job.at = {job.rows, 1, 1, job.inner};
  const ElementwiseRow* const row = row_for(kDynamic, in, type->kind, job);
  const int dims = by_row ? x.dims - 1 : 0;
  int32_t* const zeros = row ? static_cast<int32_t*>(thread_scratch(kZeroScratch, size_t(job.rows) * 4)) : nullptr;
  if (!zeros || !(codes.object = new_array(x.dims, x.shape, kinds[type->kind].numpy)) ||
      !(scale.object = new_array(dims, x.shape, npy_api::NPY_FLOAT_)))
    return decline();
  job.in = x.data, job.out = data_of(codes);
  job.low = is_signed ? -type->high : 0, job.high = type->high;
  job.found_scale = static_cast<float*>(data_of(scale)), job.found_zero = zeros;
  job.fresh = true;
  start(*row, job);
  bool good = true;
  for (idx i = 0; i < job.rows; ++i) good &= is_finite(job.found_scale[i]);
  if (!good) return decline();
  make_read_only(codes), make_read_only(scale);
  if (is_signed || !dims) {
    zero.object = PyLong_FromLong(is_signed ? 0 : zeros[0]);
  } else if ((zero.object = new_array(dims, x.shape, npy_api::NPY_UBYTE_))) {
    uint8_t* const to = static_cast<uint8_t*>(data_of(zero));
    for (idx i = 0; i < job.rows; ++i) to[i] = uint8_t(zeros[i]);
    make_read_only(zero);
  }
  return zero.object ? PyTuple_Pack(3, codes.object, scale.object, zero.object) : nullptr;
}

// ---------------------------------------------------------------- requantize

// A4 of `count` real multipliers, in scratch.
bool read_multipliers(PyObject* object, idx scales, Requantizer& by) {
  const idx n = max_of(scales, 1);
  View v;
  const int kind = scales ? kind_of(object, v) : -1;
  if (scales ? (kind != kF32 && kind != kF64) || v.dims != 1 || v.shape[0] != n : !PyFloat_Check(object)) return false;
  void* const scratch = thread_scratch(kColumnScratch, size_t(n) * 8);
  if (!scratch) return false;
  float* const m = static_cast<float*>(scratch);
  double* const m64 = static_cast<double*>(scratch);
  int32_t *const q = static_cast<int32_t*>(scratch), *const e = q + n;
  const auto given = [&](idx i) {
    return !scales        ? PyFloat_AS_DOUBLE(object)
           : kind == kF32 ? double(reinterpret_cast<const float*>(v.data)[i])
                          : reinterpret_cast<const double*>(v.data)[i];
  };
  bool good = true;
  for (idx i = 0; i < n; ++i) {
    const double scale = given(i);
    good &= scale > 0 && scale <= 1.7976931348623157e308;
    if (by.rounding == kHalfEven) {
      m[i] = float(scale);
      good &= is_finite(m[i]);
    } else if (by.rounding == kHalfAway) {
      m64[i] = scale;
    } else {
      const Fixed fixed = fixed_of(scale <= 1.7976931348623157e308 ? scale : 0);
      q[i] = fixed.q, e[i] = fixed.e;
    }
  }
  if (by.rounding == kHalfEven) by.m = m;
  else if (by.rounding == kHalfAway) by.m64 = m64;
  else by.q = q, by.e = e;
  return good;
}

PyObject* fast_requantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  View acc, bias, out;
  Elementwise job = {};
  idx scales;
  int32_t rounding;
  Held codes;
  const CodeType* const type = count == 8 ? code_type_of(args[3]) : nullptr;
  if (!type || kind_of(args[0], acc) != kS32 || acc.dims < 1 || !whole_of(args[6], 0, kRoundings - 1, rounding) ||
      !place(acc, args[4], job, scales))
    return decline();
  const ElementwiseRow* const row = row_for(kRequantize, kS32, type->kind, job);
  Requantizer& by = job.by;
  by.rounding = Rounding(rounding), by.low = job.low = type->low, by.high = job.high = type->high;
  const FloatEnvironment exact;
  const bool biased = args[5] != Py_None;
  if (!row || !(args[2] == Py_None || PyLong_CheckExact(args[2])) || !read_multipliers(args[1], scales, by) ||
      !read_zero(args[2], *type, max_of(scales, 1), acc, args[4], by.zero) ||
      (biased && (!scales || kind_of(args[5], bias) != kS32 || bias.dims != 1 || bias.shape[0] != scales)))
    return decline();
  if (biased) by.bias = reinterpret_cast<const int32_t*>(bias.data);
  const idx bytes = kinds[type->kind].bytes, size = job.rows * job.inner;
  if (args[7] == Py_None) {
    if (!(codes.object = new_array(acc.dims, acc.shape, kinds[type->kind].numpy))) return nullptr;
  } else {
    bool good = kind_of(args[7], out) == type->kind && out.writeable && out.dims == acc.dims &&
                !overlap(out, size * bytes, acc, size * 4) && !overlap(out, size * bytes, bias, scales * 4);
    for (int d = 0; d < acc.dims && good; ++d) good = out.shape[d] == acc.shape[d];
    if (!good) return decline();
    Py_INCREF(codes.object = args[7]);
  }
  job.in = acc.data, job.out = data_of(codes);
  job.fresh = args[7] == Py_None;
  start(*row, job);
  return codes.give();
}

// ---------------------------------------------------------------- add, mul

struct Operand {
  View codes;
  float scale;
  int32_t zero;
  int kind;

  bool reads(PyObject* const* args) {
    View s;
    kind = kind_of(args[0], codes);
    if (kind != 0 && kind != 1) return false;
    if (kind_of(args[1], s) != kF32 || size_of(s) != 1) return false;
    scale = *reinterpret_cast<const float*>(s.data);
    return whole_of(args[2], code_types[kind].low, code_types[kind].high, zero);
  }
};

// A14: false where something is not finite.
bool set_sum(const Operand& a, const Operand& b, float scale, int32_t zero, Elementwise& job) {
  job.a_factor = a.scale / scale, job.b_factor = b.scale / scale;
  const float of_a = job.a_factor * float(a.zero), of_b = job.b_factor * float(b.zero), both = of_a + of_b;
  job.offset = float(zero) - both;
  return is_finite(job.a_factor) && is_finite(job.b_factor) && is_finite(job.offset);
}

bool set_product(const Operand& a, const Operand& b, float scale, int32_t zero, Elementwise& job) {
  job.a_factor = multiplier(a.scale, b.scale, scale);
  job.a_zero = a.zero, job.b_zero = b.zero, job.offset = float(zero);
  return is_finite(job.a_factor);
}

PyObject* fast_pair(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Operand a, b;
  Elementwise job = {};
  int32_t zero;
  Held codes, kept;
  if (count != 9 || !a.reads(args + 1) || !b.reads(args + 4) || a.kind != b.kind || a.codes.dims != b.codes.dims)
    return decline();
  for (int d = 0; d < a.codes.dims; ++d)
    if (a.codes.shape[d] != b.codes.shape[d]) return decline();
  const CodeType& type = code_types[a.kind];
  job.rows = 1, job.inner = size_of(a.codes), job.at = {1, 1, 1, job.inner};
  if (job.inner < 1 || !PyFloat_Check(args[7]) || !whole_of(args[8], type.low, type.high, zero)) return decline();
  const bool product = args[0] == Py_True;
  const ElementwiseRow* const row = row_for(product ? kMul : kAdd, a.kind, a.kind, job);
  const FloatEnvironment exact;
  const float scale = float(PyFloat_AS_DOUBLE(args[7]));
  if (!row || !usable(scale) || !(product ? set_product : set_sum)(a, b, scale, zero, job) ||
      !(codes.object = new_array(a.codes.dims, a.codes.shape, kinds[a.kind].numpy)) ||
      !(kept.object = new_array(0, nullptr, npy_api::NPY_FLOAT_)))
    return decline();
  *static_cast<float*>(data_of(kept)) = scale;
  job.in = a.codes.data, job.other = b.codes.data, job.out = data_of(codes);
  job.fresh = true;
  start(*row, job);
  make_read_only(codes), make_read_only(kept);
  return PyTuple_Pack(2, codes.object, kept.object);
}

// ---------------------------------------------------------------- remembering

// "s16u8…" → the place of its first type in `kinds`, and what follows it; −1 for another.
int first_kind(const char*& types) {
  for (int i = 0; i < kKinds; ++i) {
    const size_t length = strlen(kinds[i].letters);
    if (strncmp(types, kinds[i].letters, length) == 0 && (types[length] < '0' || types[length] > '9')) {
      types += length;
      return i;
    }
  }
  return -1;
}

// remember_elements(row, rows, inner)
PyObject* remember_elements(PyObject*, PyObject* args) {
  int index;
  Known entry;
  if (!PyArg_ParseTuple(args, "inn", &index, &entry.rows, &entry.inner)) return nullptr;
  if (index < 0 || index >= elementwise_count() || !cpu_runs(elementwise_row(index).isa)) {
    PyErr_SetString(PyExc_ValueError, "remember_elements: that row does not run here");
    return nullptr;
  }
  const ElementwiseRow& row = elementwise_row(index);
  const char* types = row.types;
  const int in = first_kind(types), out = first_kind(types);
  for (int op = 0; op < kOps && in >= 0 && out >= 0; ++op)
    if (strcmp(op_names[op], row.op) == 0) {
      entry.key = key_of(op, in, out), entry.row = index;
      slot_of(entry.rows, entry.inner, entry.key) = entry;
    }
  Py_RETURN_NONE;
}

PyObject* forget_elements(PyObject*, PyObject*) {
  for (Known& entry : known) entry = {};
  Py_RETURN_NONE;
}

PyCFunction of(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef methods[] = {
    {"fast_quantize", of(fast_quantize), METH_FASTCALL,
     "fast_quantize(x, scale, zero, dtype, axes) → (codes, scale), or None where Python must decide."},
    {"fast_dequantize", of(fast_dequantize), METH_FASTCALL,
     "fast_dequantize(codes, scale, zero, axes) → float32, or None where Python must decide."},
    {"fast_dynamic", of(fast_dynamic), METH_FASTCALL,
     "fast_dynamic(x, dtype, per_row) , or None where Python must decide."},
    {"fast_requantize", of(fast_requantize), METH_FASTCALL,
     "fast_requantize(acc, scale, zero, dtype, axes, bias, rounding, out) → codes, or None where Python must decide."},
    {"fast_pair", of(fast_pair), METH_FASTCALL,
     "fast_pair(product, a, a_scale, a_zero, b, b_scale, b_zero, scale, zero) → (codes, scale), or None where Python "
     "must decide."},
    {"remember_elements", remember_elements, METH_VARARGS,
     "remember_elements(row, rows, inner): this row runs its op and types at these sizes."},
    {"forget_elements", forget_elements, METH_NOARGS, "Forget every size."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_elements(PyObject* module) {
  if (PyModule_AddFunctions(module, methods) < 0) throw pybind11::error_already_set();
}

}  // namespace qk
