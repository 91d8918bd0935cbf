// Rows of real numbers: the curves of A6 and the cast to f16, in the baseline instruction set.
//
// Curves are evaluated in f64 and rounded once, by the C library: within one ulp, where A6 allows two.
#include <cmath>

#include "../epilogue.h"

namespace qk {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double curve_of(Curve curve, double x) {
  switch (curve) {
    case Curve::gelu:
      return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
    case Curve::gelu_tanh:
      return x * sigmoid(2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x));
    case Curve::silu:
      return x * sigmoid(x);
    case Curve::hardswish:
      return x * (x + 3 < 0 ? 0 : x + 3 > 6 ? 6 : x + 3) / 6;
    case Curve::sigmoid:
      return sigmoid(x);
    case Curve::tanh:
      return std::tanh(x);
    default:
      return x;
  }
}

uint16_t f16_of(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return uint16_t(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                                  // below 2⁻¹⁴ the unit is 2⁻²⁴: that of x + ½
    float positive;
    memcpy(&positive, &magnitude, 4);
    return uint16_t(sign | (bits_of(positive + 0.5f) - 0x3F000000u));
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return uint16_t(sign | (rebased + 0xFFFu + (rebased >> 13 & 1u)) >> 13);
}

}  // namespace

void activate_row(Curve curve, float* y, idx n) {
  for (idx i = 0; i < n; ++i) y[i] = float(curve_of(curve, double(y[i])));
}

void cast_row_f16(const float* y, uint16_t* out, idx n) {
  for (idx i = 0; i < n; ++i) out[i] = f16_of(y[i]);
}

}  // namespace qk
