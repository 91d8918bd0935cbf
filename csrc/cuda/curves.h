// The curved activations of A6 in f32: on most GPUs f64 has a 32nd or a 64th of its rate, and csrc/cpu/curves.h, which is
// f64 rounded once, would cost more than the product. Plain operations, so that the emulator computes the same bits.
//
// Everything but hardswish is tanh: sigmoid(y) = ½ + ½·tanh(y/2), whose error near 0 is below that of 1/(1 + e^−y), and
// the normal distribution of gelu is ½ + ½·tanh(g(y)), g(y) = y·G(y²) fitted to atanh(erf(y/√2)) on |y| ≤ 5.3, 3·10⁻⁸ of
// the result. (erf as a quotient of polynomials lost: its roundings near 1 are 1.03 of what A6 allows.)
// tanh = m/(m + 2), m = expm1(2y), by a polynomial on |r| ≤ ln2/2. Arguments are finite (A6).
#pragma once
#include "../arithmetic.h"
#include "ptx.h"

namespace qk::cuda {

enum Curve : int32_t { kNoCurve, kGelu, kGeluTanh, kSilu, kHardswish, kSigmoid, kTanh };

QK_DEVICE float tanh_f32(float x) {
  const float t = clamp_or_low(2.0f * x, -30.0f, 30.0f);
  const float sum = t * 1.44269504f + 12582912.0f, n = sum - 12582912.0f;
  const float r = t - n * 0.693145751953125f - n * 1.42860677e-6f;
  float p = 1.98412698e-4f;  // (e^r − 1 − r)/r²
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333377e-3f;
  p = p * r + 4.16666679e-2f;
  p = p * r + 1.66666672e-1f;
  p = p * r + 0.5f;
  const uint32_t bits = (bits_of(sum) + 127u) << 23;  // 2ⁿ: the low bits of `sum` are n
  float power;
  memcpy(&power, &bits, 4);
  const float m = (r + r * (r * p)) * power + (power - 1.0f);
  return m / (m + 2.0f);
}

QK_DEVICE float normal_f32(float y) {
  float u = y * y, g = 1.75617189e-9f;
  u = u < 28.0f ? u : 28.0f;
  g = g * u - 1.32263377e-7f;
  g = g * u + 3.96474483e-6f;
  g = g * u - 5.53061956e-5f;
  g = g * u - 3.2594972e-5f;
  g = g * u + 3.63330846e-2f;
  return y * (g * u + 0.797884941f);
}

QK_DEVICE float curved(int32_t curve, float y) {
  if (curve == kHardswish) return y * (clamp_or_low(y + 3.0f, 0.0f, 6.0f) * 0.166666672f);
  float u = 0.5f * y;
  if (curve == kGelu) u = normal_f32(y);
  if (curve == kGeluTanh) u = 0.797884561f * (y + 0.044715f * y * y * y);
  if (curve == kTanh) u = y;
  const float odd = tanh_f32(u), part = 0.5f + 0.5f * odd;
  return curve == kTanh ? odd : curve == kSigmoid ? part : y * part;
}

}  // namespace qk::cuda
