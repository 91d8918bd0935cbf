// The rules A4 … A9 of docs/arithmetic.md, one number at a time: what every loop in C++ and CUDA computes.
//
// Plain functions for host and device: no std, no intrinsics, internal linkage. Vector code (cpu/lanes_*.h) does the
// same operations in the same order, several numbers at a time, and is compared with these bit for bit.
// Compile without contraction (-ffp-contract=off, -fmad=false), rounding to nearest, subnormals kept (A0).
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define QK_HD static inline __host__ __device__
#else
#define QK_HD static inline
#endif

namespace qk {

// How accumulators are rounded (A5). The numbers are those of qkernels/rounding.py's order.
enum Rounding { kHalfEven, kGemmlowp, kRuy, kHalfUp, kHalfAway, kRoundings };

constexpr float kFloatMax = 3.4028234663852886e38f;
constexpr float kSmallestAmax = 1.504632769052528e-36f;  // 2⁻¹¹⁹ (A8)
constexpr int32_t kInt32Min = -2147483647 - 1, kInt32Max = 2147483647;

QK_HD uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

QK_HD int64_t clamp64(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// low for a NaN: the comparisons are false for it.
QK_HD float clamp_or_low(float x, float low, float high) {
  const float t = x > low ? x : low;
  return t < high ? t : high;
}

// A6: NaN stays NaN, −0 stays −0.
QK_HD float clamp_float(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// rint for |x| ≤ 2²²: the sum with 1.5·2²³ has no bits below the units, and its own low bits are the integer.
QK_HD int32_t near_even(float x) {
  const float sum = x + 12582912.0f;
  return int32_t(bits_of(sum) - 0x4B400000u);
}

QK_HD int32_t add_wrapped(int32_t x, int32_t y) { return int32_t(uint32_t(x) + uint32_t(y)); }

// ---------------------------------------------------------------- A4

// half_even; A0 wants it finite, which the op has checked.
QK_HD float multiplier(float a_scale, float w_scale, float y_scale) {
  const float product = a_scale * w_scale;
  return product / y_scale;
}

struct Fixed {
  int32_t q, e;  // the multiplier is q·2^(e−31), q 0 or in [2³⁰, 2³¹), e in [−31, 30]
};

// M finite and ≥ 0.
QK_HD Fixed fixed_of(double M) {
  if (!(M > 0)) return {0, 0};
  int shift = 0;
  if (M < 2.2250738585072014e-308) M *= 18014398509481984.0, shift = -54;  // a subnormal: exact
  uint64_t bits;
  memcpy(&bits, &M, 8);
  int e = int(bits >> 52) - 1022 + shift;                                       // M = f·2^e, ½ ≤ f < 1
  const uint64_t fraction = (bits & 0xFFFFFFFFFFFFFull) | 0x10000000000000ull;  // f·2⁵³
  uint64_t q = (fraction + (1ull << 21)) >> 22;                                 // half away: M > 0
  if (q == 1ull << 31) q >>= 1, ++e;
  if (e < -31) return {0, 0};
  if (e > 30) return {kInt32Max, 30};
  return {int32_t(q), e};
}

// ---------------------------------------------------------------- A5: round(acc), clamped to [low, high] = [qmin − zy, qmax − zy]

QK_HD int32_t round_half_even(int32_t acc, float m, int32_t low, int32_t high) {
  const float t = float(acc) * m;
  return near_even(clamp_or_low(t, float(low), float(high)));
}

// ((acc << L)·q + 2³⁰) >> 31 with the shift saturated to s32: the first step of gemmlowp and of ruy (lemma 6).
QK_HD int64_t high_half(int32_t acc, Fixed m) {
  const int64_t shifted = clamp64(int64_t(uint64_t(int64_t(acc)) << (m.e > 0 ? m.e : 0)), kInt32Min, kInt32Max);
  return (shifted * m.q + (int64_t(1) << 30)) >> 31;
}

QK_HD int32_t round_gemmlowp(int32_t acc, Fixed m, int32_t low, int32_t high) {
  const int64_t h = high_half(acc, m);
  const int right = m.e < 0 ? -m.e : 0;
  const int64_t mask = (int64_t(1) << right) - 1;
  const int64_t up = (h & mask) > (mask >> 1) + (h < 0);
  return int32_t(clamp64((h >> right) + up, low, high));
}

QK_HD int32_t round_ruy(int32_t acc, Fixed m, int32_t low, int32_t high) {
  const int right = m.e < 0 ? -m.e : 0;
  return int32_t(clamp64((high_half(acc, m) + ((int64_t(1) << right) >> 1)) >> right, low, high));
}

QK_HD int32_t round_half_up(int32_t acc, Fixed m, int32_t low, int32_t high) {
  const int t = 31 - m.e;  // 1 … 62
  return int32_t(clamp64((int64_t(acc) * m.q + (int64_t(1) << (t - 1))) >> t, low, high));
}

QK_HD int32_t round_half_away(int32_t acc, double m, int32_t low, int32_t high) {
  const double product = double(acc) * m;
  const double t = product + (acc < 0 ? -0.5 : 0.5);
  return int32_t(t < low ? double(low) : t > high ? double(high) : t);  // lemma 1; the conversion truncates
}

// ---------------------------------------------------------------- A7, A9

// The code less the zero point: [low, high] = [qmin − z, qmax − z]. NaN gives low.
QK_HD int32_t quantize(float x, float scale, int32_t low, int32_t high) {
  return near_even(clamp_or_low(x / scale, float(low), float(high)));
}

QK_HD float dequantize(int32_t code, int32_t zero, float scale) { return float(code - zero) * scale; }

// ---------------------------------------------------------------- A8

// Of the magnitude of a float as an integer: finite?
QK_HD bool is_finite(float x) { return (bits_of(x) & 0x7FFFFFFFu) < 0x7F800000u; }

struct Symmetric {
  float scale, reciprocal;  // the reciprocal 0: every code is 0, of infinite elements too
};

QK_HD Symmetric symmetric(float amax, int32_t largest) {
  if (amax < kSmallestAmax) return {1.0f, 0.0f};
  return {amax / float(largest), float(largest) / amax};
}

// NaN → 0 (0·∞ is one), ±∞ → ±Q.
QK_HD int32_t quantize_symmetric(float x, float reciprocal, int32_t largest) {
  const float t = x * reciprocal;
  return t == t ? near_even(clamp_or_low(t, -float(largest), float(largest))) : 0;
}

struct Asymmetric {
  float scale;
  int32_t zero;
};

// low ≤ 0 ≤ high, the ends of the range; codes are 0 … largest.
QK_HD Asymmetric asymmetric(float low, float high, int32_t largest) {
  const float width = high - low;
  float scale = width / float(largest);
  if (scale == 0) scale = 1;
  const float zero = 0.0f - low / scale;
  return {scale, near_even(clamp_or_low(zero, 0.0f, float(largest)))};
}

}  // namespace qk
