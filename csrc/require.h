// What a door to Python says of arguments that do not fit: a ValueError.
#pragma once
#include <pybind11/pybind11.h>

namespace qk {

inline void require(bool good, const char* what) {
  if (!good) throw pybind11::value_error(what);
}

}  // namespace qk
