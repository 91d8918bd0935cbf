#pragma once
#include <pybind11/numpy.h>

#include <vector>

#include "cpu/int4.h"
#include "epilogue.h"

namespace qk {
// qkernels/epilogue.py's Epilogue, checked, for out (m, n). finds_scale: the kernel finds a_scale. zeros: room that must
// live as long as the result. float_sums: the kernel's sums are floats, weighed already (A10).
Epilogue epilogue_of(const pybind11::tuple& by, const pybind11::array& out, idx m, idx n, bool finds_scale,
                     std::vector<int32_t>& zeros, bool float_sums = false);
const int32_t* read_a_zero(const pybind11::tuple& by, idx m);
void add_linear(pybind11::module_& module);   // linear.cpp: the careful way in
void add_fast_linear(PyObject* module);       // fast_linear.cpp: the short one, of floats
void add_experts(pybind11::module_& module);  // experts.cpp: mixtures of experts
void add_int4(pybind11::module_& module);     // int4.cpp: 4- and 2-bit weights, 8-bit ones with groups

// None, or (lowest, highest), as Python has checked it.
inline bool set_clamp(Epilogue& e, PyObject* clamp) {
  if (clamp == Py_None) return true;
  if (!PyTuple_CheckExact(clamp) || PyTuple_GET_SIZE(clamp) != 2) return false;
  PyObject *low = PyTuple_GET_ITEM(clamp, 0), *high = PyTuple_GET_ITEM(clamp, 1);
  if (!PyFloat_CheckExact(low) || !PyFloat_CheckExact(high)) return false;
  e.clamps = true;
  e.clamp_low = float(PyFloat_AS_DOUBLE(low)), e.clamp_high = float(PyFloat_AS_DOUBLE(high));
  return true;
}

struct PackedInt4 {
  Int4 g;  // all that belongs to the weights
  int bits;
  bool w_signed;
};
const PackedInt4* packed_int4_of(PyObject* object);  // null for anything else than its handle
}  // namespace qk
