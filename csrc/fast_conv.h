// Adds the short way into conv2d to the module.
#pragma once

struct _object;

namespace qk { void add_fast_conv(_object* module); }  // namespace qk
