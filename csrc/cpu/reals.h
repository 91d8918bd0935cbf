// Real numbers of other types than float32, widened to it and narrowed from it (A1), as plain loops that the compiler
// turns into each ISA's vectors. A strip at a time, which stays in L1.
#pragma once
#include <string.h>

#include "../arithmetic.h"
#include "../elementwise.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

inline void widen(const double* x, float* out, idx n) {
  for (idx i = 0; i < n; ++i) out[i] = float(x[i]);
}

inline void widen(const Bfloat* x, float* out, idx n) {
  for (idx i = 0; i < n; ++i) {
    const uint32_t bits = uint32_t(x[i].bits) << 16;
    memcpy(&out[i], &bits, 4);
  }
}

// Exact, subnormals included; an infinity or NaN keeps its bits.
inline void widen(const Half* x, float* out, idx n) {
  for (idx i = 0; i < n; ++i) {
    const uint32_t half = x[i].bits, magnitude = half & 0x7FFFu, shifted = magnitude << 13;
    float value;
    memcpy(&value, &shifted, 4);
    value *= 5.192296858534828e33f;  // 2¹¹²: the exponent of float32
    uint32_t bits = bits_of(value);
    bits = magnitude >= 0x7C00u ? 0x7F800000u | shifted : bits;
    bits |= (half & 0x8000u) << 16;
    memcpy(&out[i], &bits, 4);
  }
}

// Half to even: in the normal range on the bits, below 2⁻¹⁴, where the unit is 2⁻²⁴, by the sum with ½.
inline void narrow(const float* y, Half* out, idx n) {
  for (idx i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(y[i]), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    float positive;
    memcpy(&positive, &magnitude, 4);
    const uint32_t small = bits_of(positive + 0.5f) - 0x3F000000u;
    uint32_t half = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    half = magnitude < 0x38800000u ? small : half;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;  // 65520 and more round to infinity
    half = magnitude > 0x7F800000u ? 0x7E00u : half;
    out[i].bits = uint16_t(sign | half);
  }
}

inline void narrow(const float* y, Bfloat* out, idx n) {
  for (idx i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(y[i]), rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    out[i].bits = uint16_t(nan ? bits >> 16 | 0x40u : rounded >> 16);
  }
}

inline void narrow(const float* y, double* out, idx n) {
  for (idx i = 0; i < n; ++i) out[i] = y[i];
}

constexpr idx kStrip = 256;  // 1 KiB of float32

// use(x, j, n): elements j … j + n of x as float32.
template <class Use>
QK_INLINE inline void for_strips(const float* x, idx n, const Use& use) {
  use(x, idx(0), n);
}
template <class X, class Use>
inline void for_strips(const X* x, idx n, const Use& use) {
  float strip[kStrip];
  for (idx j = 0; j < n; j += kStrip) {
    const idx some = min_of(kStrip, n - j);
    widen(x + j, strip, some);
    use(strip, j, some);
  }
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
