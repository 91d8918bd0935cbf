// What the other doors to linear need of fast_linear.cpp: weights, and the rows that were chosen for them.
#pragma once
#include <pybind11/pybind11.h>

#include "epilogue.h"

namespace qk {

// The sizes of a weight's handle. False for anything else.
bool linear_sizes(PyObject* handle, idx* n, idx* k);

// Is it decided which row runs this weight with m rows of floats?
bool linear_decided(PyObject* handle, idx m);

// x (m, k) float32, adjacent → e.out. Where linear_decided; the scales of e are filled in. Lets other threads run.
// False when memory could not be had.
bool linear_of_floats(PyObject* handle, const float* x, idx m, Epilogue& e);

}  // namespace qk
