// Adds the elementwise kernels' functions to the module.
#pragma once

struct _object;

namespace qk { void add_elementwise(_object* module); }  // namespace qk
