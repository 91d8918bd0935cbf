#pragma once
#include <pybind11/numpy.h>

#include <vector>

#include "epilogue.h"

namespace qk {
// qkernels/epilogue.py's Epilogue, checked, for out (m, n). finds_scale: the kernel finds a_scale. zeros: room that must
// live as long as the result.
Epilogue epilogue_of(const pybind11::tuple& by, const pybind11::array& out, idx m, idx n, bool finds_scale,
                     std::vector<int32_t>& zeros);
void add_linear(pybind11::module_& module);  // linear.cpp: the careful way in
void add_fast_linear(PyObject* module);      // fast_linear.cpp: the short one, of floats
}  // namespace qk
