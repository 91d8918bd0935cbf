// The curved activations of A6, as plain loops that the compiler turns into each ISA's vectors.
//
// In f64, rounded once. Errors beside that rounding (2⁻²⁵): exp is a polynomial on |r| ≤ ln2/2, 2·10⁻¹⁰; erfc(z) for
// z ≥ 0 is t·exp(−z² + P(t)), t = 1/(1 + z/2), P fitted to ln(erfcx(z)/t) on Chebyshev's points of t in [0.14, 1],
// 1.2·10⁻⁸; below, results are 0 in f32. A6 allows 2⁻²². An element takes 1.4 (silu) to 2.7 ns (gelu) with AVX-512, the
// C library's functions 3.7 (silu) to 16 ns (tanh). Where there is a fast fma, gelu is that of gelu.h.
// tanh is expm1(2y)/(expm1(2y) + 2), which does not cancel near 0. Arguments are finite (A6).
#pragma once
#include <string.h>

#include "../epilogue.h"
#include "gelu.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

// In two steps: a nested condition stays a branch, and a loop with a branch is not vectorized.
QK_INLINE inline double clamped(double x, double low, double high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

struct Exponent {
  double r, power;  // x = n·ln2 + r, power = 2ⁿ
};

QK_INLINE inline Exponent split(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5·2⁵²: what is added to it is rounded to a whole number
  x = clamped(x, -700, 700);
  const double sum = x * 1.4426950408889634 + kMagic, n = sum - kMagic;
  uint64_t bits;
  memcpy(&bits, &sum, 8);
  bits = (bits + 1023) << 52;  // the low bits of `sum` are n
  double power;
  memcpy(&power, &bits, 8);
  return {x - n * 0.6931471805599453, power};
}

// (e^r − 1)/r
QK_INLINE inline double slope(double r) {
  double p = 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  return p * r + 1;
}

QK_INLINE inline double exp_of(double x) {
  const Exponent e = split(x);
  return (slope(e.r) * e.r + 1) * e.power;
}

QK_INLINE inline double sigmoid_of(double x) { return 1 / (1 + exp_of(-x)); }

QK_INLINE inline double tanh_of(double x) {
  const double twice = 2 * x;
  const Exponent e = split(clamped(twice, -60, 60));
  const double less_one = slope(e.r) * e.r * e.power + (e.power - 1);
  return less_one / (less_one + 2);
}

QK_INLINE inline double gelu_of(double x) {
  const double size = x < 0 ? -x : x, z = size * 0.70710678118654752440, t = 1 / (1 + 0.5 * z);
  double p = -0.126268757267953;
  p = p * t + 0.878835048259508;
  p = p * t - 2.54516153261429;
  p = p * t + 3.87526839274664;
  p = p * t - 3.20895226455871;
  p = p * t + 1.45329121420924;
  p = p * t - 0.62273462090433;
  p = p * t + 0.201254625959204;
  p = p * t + 0.358754992248876;
  p = p * t + 1.0012675552208;
  p = p * t - 1.26555464761142;
  const double tail = t * exp_of(p - z * z);
  return 0.5 * x * (x < 0 ? tail : 2 - tail);
}

QK_INLINE inline double gelu_tanh_of(double x) {
  return x * sigmoid_of(1.5957691216057308 * (x + 0.044715 * x * x * x));
}

QK_INLINE inline double hardswish_of(double x) { return x * clamped(x + 3, 0, 6) / 6; }

template <class Of>
QK_INLINE inline void map_row(float* y, idx n, const Of& of) {
  for (idx i = 0; i < n; ++i) y[i] = float(of(double(y[i])));
}

template <class L>
QK_INLINE inline void gelu_row_of(float* y, idx n) {
  if constexpr (L::kFma) gelu_row<L>(y, n);
  else map_row(y, n, [](double x) QK_INLINE { return gelu_of(x); });
}

__attribute__((noinline)) void activate_row(Curve curve, float* y, idx n) {
  switch (curve) {
    case Curve::gelu:
      return gelu_row_of<Lanes>(y, n);
    case Curve::gelu_tanh:
      return map_row(y, n, [](double x) QK_INLINE { return gelu_tanh_of(x); });
    case Curve::silu:
      return map_row(y, n, [](double x) QK_INLINE { return x * sigmoid_of(x); });
    case Curve::hardswish:
      return map_row(y, n, [](double x) QK_INLINE { return hardswish_of(x); });
    case Curve::sigmoid:
      return map_row(y, n, [](double x) QK_INLINE { return sigmoid_of(x); });
    case Curve::tanh:
      return map_row(y, n, [](double x) QK_INLINE { return tanh_of(x); });
    default:
      return;
  }
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
