// Multipliers and biases of codes, where a scale was found on the device: an element each, before the product.
// (half_even needs no multipliers here: the epilogue makes them on its way.)
#pragma once
#include "epilogue.h"
#include "launch.h"

namespace qk::cuda {

// rint, half to even, saturated to s32: in f64 a sum with 1.5·2⁵² has no bits below the units.
QK_DEVICE int32_t nearest_s32(float t) {
  double x = double(t);
  x = x > -2147483648.0 ? x : -2147483648.0;
  x = x < 2147483647.0 ? x : 2147483647.0;
  const double sum = x + 6755399441055744.0;
  uint64_t bits;
  memcpy(&bits, &sum, 8);
  return int32_t(uint32_t(bits));
}

QK_KERNEL(256, 2) prepare_codes(QK_ARGUMENT PrepareArgs args) {
  const int64_t at = int64_t(ptx::block_x()) * 256 + ptx::thread();
  if (at >= args.rows * args.n) return;
  const int64_t i = at / args.n, j = at - i * args.n;
  const float a_scale = ptx::load(args.a_scale + i * args.a_scale_step);
  const float w_scale = ptx::load(args.w_scale + j * args.w_scale_step), unit = a_scale * w_scale;
  if (args.bias) ptx::store(args.bias + at, nearest_s32(ptx::load(args.float_bias + j) / unit));
  if (!args.m_values) return;
  if (args.rounding == kHalfEven)
    return ptx::store(static_cast<float*>(args.m_values) + at, multiplier(a_scale, w_scale, args.y_scale));
  const double product = args.single ? double(unit) : double(a_scale) * double(w_scale);
  const double m = product / double(args.y_scale);
  if (args.rounding == kHalfAway) {
    ptx::store(static_cast<double*>(args.m_values) + at, m);
  } else {
    const Fixed fixed = fixed_of(m);
    ptx::store(static_cast<int32_t*>(args.m_values) + at, fixed.q);
    ptx::store(args.e_values + at, fixed.e);
  }
}

inline void launch_prepare(const PrepareArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(args.rows * args.n, 256));
  shape.threads = 256;
  launch(prepare_codes, shape, stream, args, "prepare_codes");
}

}  // namespace qk::cuda
