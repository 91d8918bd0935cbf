// Adds the short ways into the elementwise ops to the module.
#pragma once

struct _object;

namespace qk { void add_fast_elements(_object* module); }  // namespace qk
