// Adds the pools to the module.
#pragma once

struct _object;

namespace qk { void add_pools(_object* module); }  // namespace qk
