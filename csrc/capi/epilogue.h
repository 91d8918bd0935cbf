// The caller's epilogue, checked, as kernels take it.
#pragma once
#include "../epilogue_columns.h"
#include "call.h"

namespace qk::capi {

struct EpilogueOf {  // what it has to fit
  idx m, n;
  bool of_floats;   // a is real numbers: the kernel finds a_scale
  bool one_row;     // nothing may differ by row
  bool float_sums;  // they are weighed already (A10): no w_scale, no bias of integers
  bool query;       // only sizes are wanted: pointers may be NULL
};

int32_t read_epilogue(const qk_epilogue* given, const EpilogueOf& of, Epilogue& e, const Say& say);

// Its zero points as an array, where its rounding wants one: n values in the call's workspace. False: no memory.
bool spread_zero(Epilogue& e, idx n);
static inline size_t spread_bytes(idx n) { return lines(size_t(n) * 4); }

}  // namespace qk::capi
