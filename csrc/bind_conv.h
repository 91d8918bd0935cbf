#pragma once
#include <pybind11/pybind11.h>

namespace qk {

void add_conv(pybind11::module_& m);

// A call that `conv_ready` checked, of which only the memory is left open. Null for anything else.
struct ConvReady;
const ConvReady* conv_ready_of(PyObject* capsule);

// Of the sizes and types that were said, C contiguous; residual: null where none was said. Without the GIL. False when
// memory could not be had.
bool run_conv_ready(const ConvReady& ready, const void* x, void* out, const void* residual);

}  // namespace qk
