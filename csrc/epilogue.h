// What becomes of accumulators: qkernels/epilogue.py's Epilogue as plain pointers. Every ISA file may include it.
#pragma once
#include "arithmetic.h"
#include "kernel.h"

namespace qk {

enum class Written { s32, f32, f16, bf16, s8, u8, s16, u16 };  // of qkernels/epilogue.py's names, in this order
enum class Residual { none, f32, s8, u8 };
enum class Curve { none, gelu, gelu_tanh, silu, hardswish, sigmoid, tanh };

// Row i, column j of an (m, n) result. A step of rows is 0 where one row serves all; else n.
struct Epilogue {
  Written type;
  void* out;
  idx out_row;
  const int32_t* bias;  // inside of the accumulator; or null
  idx bias_row;

  // real numbers: f32(f32(acc) · f32(a_scale_i · w_scale_j)) + float_bias_j + residual, activated, cast
  const float* a_scale;
  idx a_scale_step;  // 0 or 1
  const float* w_scale;
  const float* float_bias;  // or null
  bool clamps;
  float clamp_low, clamp_high;
  Curve curve;

  // codes: clamp(round(acc) + zero), or with a residual clamp(rint(f32(f32(acc)·m) + residual) + zero)
  Rounding rounding;
  bool left;             // some e > 0
  const float* m;        // half_even
  const double* m64;     // half_away
  const int32_t *q, *e;  // the others: q·2^(e−31)
  idx m_row;
  const int32_t* zeros;  // n times `zero`, or null where it is 0
  int32_t zero, low, high;

  Residual residual_type;
  const void* residual;  // (m, n), adjacent
  idx residual_row;
  float residual_scale;
  int32_t residual_zero;
};

// That of rows i and after.
static inline Epilogue epilogue_from(Epilogue e, idx i) {
  constexpr idx kBytes[] = {4, 4, 2, 2, 1, 1, 2, 2};
  e.out = static_cast<char*>(e.out) + i * e.out_row * kBytes[int(e.type)];
  if (e.bias) e.bias += i * e.bias_row;
  if (e.m) e.m += i * e.m_row;
  if (e.m64) e.m64 += i * e.m_row;
  if (e.q) e.q += i * e.m_row, e.e += i * e.m_row;
  if (e.a_scale) e.a_scale += i * e.a_scale_step;
  const char* const residual = static_cast<const char*>(e.residual);
  if (residual) e.residual = residual + i * e.residual_row * (e.residual_type == Residual::f32 ? 4 : 1);
  return e;
}

}  // namespace qk
