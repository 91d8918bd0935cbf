// The other way to cut an epilogue: epilogue_from is that of some rows.
#pragma once
#include "epilogue.h"

namespace qk {

// That of the columns from j.
static inline Epilogue epilogue_of_columns(Epilogue e, idx j) {
  constexpr idx kBytes[] = {4, 4, 2, 2, 1, 1, 2, 2};
  e.out = static_cast<char*>(e.out) + j * kBytes[int(e.type)];
  if (e.bias) e.bias += j;
  if (e.w_scale) e.w_scale += j;
  if (e.float_bias) e.float_bias += j;
  if (e.m) e.m += j;
  if (e.m64) e.m64 += j;
  if (e.q) e.q += j, e.e += j;
  const char* const residual = static_cast<const char*>(e.residual);
  if (residual) e.residual = residual + j * (e.residual_type == Residual::f32 ? 4 : 1);
  return e;
}

}  // namespace qk
