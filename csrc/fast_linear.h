// What the other doors to linear need of fast_linear.cpp: weights, and the rows that were chosen for them.
#pragma once
#include <pybind11/pybind11.h>

#include "epilogue.h"

namespace qk {

// The sizes of a weight's handle. False for anything else.
bool linear_sizes(PyObject* handle, idx* n, idx* k);

// What belongs to the columns of an 8-bit weight; the handle keeps it alive. False for any other.
struct LinearColumns {
  idx n, k;
  const float* scale;
  const int32_t *zero, *sums;  // zero: or null
};
bool linear_columns(PyObject* handle, LinearColumns* columns);

// Is it decided which row runs this weight with m rows of x?
enum XKind { kOfFloats, kOfSigned, kOfUnsigned };
bool linear_decided(PyObject* handle, idx m, XKind kind);

// x (m, k) float32, adjacent → e.out. Where linear_decided; the scales of e are filled in. Lets other threads run.
// False when memory could not be had.
bool linear_of_floats(PyObject* handle, const float* x, idx m, Epilogue& e);

// Likewise of codes (m, k) whose zero point is in e's bias already.
bool linear_of_codes(PyObject* handle, const uint8_t* codes, idx m, XKind kind, Epilogue& e);

}  // namespace qk
