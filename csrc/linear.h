#pragma once
#include <pybind11/pybind11.h>

namespace qk {
void add_linear(pybind11::module_& module);  // linear.cpp: the careful way in
void add_fast_linear(PyObject* module);      // fast_linear.cpp: the short one, of floats
}  // namespace qk
