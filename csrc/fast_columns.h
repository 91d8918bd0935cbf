// What a linear layer of codes needs of its columns (A4, A6): multipliers, the bias in units of the sums, a clamp's ends.
#pragma once
#include "epilogue.h"

namespace qk {

// rint of a number below 2³² in size, half to even: above 2⁵² units are whole.
inline double whole(double x) {
  volatile double sum = x + 6755399441055744.0;
  return sum - 6755399441055744.0;
}

// A6: the code of a clamp's end.
inline int32_t end_of(float bound, float scale, int32_t zero, int32_t low, int32_t high) {
  const float t = bound / scale;
  const double code = (t >= 2147483647.0f ? 2147483647.0 : t <= -2147483648.0f ? -2147483648.0 : whole(t)) + zero;
  return code < low ? low : code > high ? high : int32_t(code);
}

// The multipliers of A4 and the float bias in units of A6, for n columns of scales w; reach: the largest size of a code
// less its zero point. False where A0 or A2 must be looked at.
inline bool set_columns(Epilogue& e, const float* w, idx n, idx k, float a_scale, float out_scale, float* m,
                        int32_t* rounded, double reach) {
  bool good = true;
  double most = 0;
  for (idx j = 0; j < n; ++j) {
    const float unit = a_scale * w[j];
    m[j] = unit / out_scale;
    good &= is_finite(unit) && is_finite(m[j]);
    if (!e.float_bias) continue;
    const double t = whole(e.float_bias[j] / unit);
    good &= t > -2147483648.0 && t < 2147483648.0;
    rounded[j] = good ? int32_t(t) : 0;
  }
  if (e.float_bias) e.bias = rounded, e.float_bias = nullptr;
  for (idx j = 0; e.bias && j < n; ++j) {
    const double size = e.bias[j] < 0 ? -double(e.bias[j]) : double(e.bias[j]);
    most = size > most ? size : most;
  }
  e.m = m;
  return good && reach * 255 * double(k) + most <= 2147483647.0;
}

}  // namespace qk
