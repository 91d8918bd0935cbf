#pragma once
#include <pybind11/pybind11.h>

namespace qk { void add_topk(pybind11::module_& module); }  // namespace qk
