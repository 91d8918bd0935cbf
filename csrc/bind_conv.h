#pragma once
#include <pybind11/pybind11.h>

namespace qk { void add_conv(pybind11::module_& m); }
