// matmul without a detour: once Python has decided which row a shape runs on, the next calls of that shape come here.
#pragma once
#include <pybind11/pybind11.h>

namespace qk {
void add_fast_call(PyObject* module);
void add_fast_static(PyObject* module);
void add_fast_tensors(PyObject* module);
bool use_in_force();  // is a pattern of use() in force here, so that Python must decide?
}  // namespace qk
