// Half precision and its tensor-core product.
//
// What hardware promises of mma with float sums is little: products are exact, and how they are added is not specified.
// Measured GPUs align eight products and the sum so far to the largest of them, cut off what lies below, add, and cut the
// result off too. So does this, with no bit more than a float has (GPUs have one to three more): nothing that passes here
// relies on a better sum.
#pragma once
#include <cmath>

#include "tensor.h"

namespace qk::emulator {

inline double half_value(uint16_t h, bool bfloat) {
  if (bfloat) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  const int exponent = h >> 10 & 31, fraction = h & 0x3FF;
  double x = exponent == 0    ? std::ldexp(fraction, -24)
             : exponent == 31 ? (fraction ? NAN : INFINITY)
                              : std::ldexp(1024 + fraction, exponent - 25);
  return h & 0x8000 ? -x : x;
}

// Half to even, of a double.
inline uint16_t half_of(double x, bool bfloat) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int fraction_bits = bfloat ? 7 : 10, least = bfloat ? -126 : -14, most = bfloat ? 127 : 15;
  const uint16_t infinite = bfloat ? 0x7F80 : 0x7C00;
  if (std::isnan(x)) return sign | infinite | 1 << (fraction_bits - 1);
  if (std::isinf(x)) return sign | infinite;
  const double magnitude = std::fabs(x);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), least);
  const double units = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
  // A carry out of the fraction goes into the exponent by itself; below 2^least the exponent's field is 0.
  const auto bits = (static_cast<int64_t>(exponent - least) << fraction_bits) + static_cast<int64_t>(units);
  return bits >= (static_cast<int64_t>(most - least + 2) << fraction_bits) ? sign | infinite
                                                                           : static_cast<uint16_t>(sign | bits);
}

// Exact for the small integers that kernels make with it: a double holds product and sum.
inline uint32_t fma_pair(uint32_t x, uint32_t y, uint32_t z, bool bfloat) {
  uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {
    const auto half = [&](uint32_t pair) { return half_value(static_cast<uint16_t>(pair >> 16 * i), bfloat); };
    result |= static_cast<uint32_t>(half_of(std::fma(half(x), half(y), half(z)), bfloat)) << 16 * i;
  }
  return result;
}

inline uint32_t bfloat_pair(float low, float high) {
  return half_of(low, true) | static_cast<uint32_t>(half_of(high, true)) << 16;
}

inline uint32_t permute(uint32_t x, uint32_t y, uint32_t which) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> 8 * (which >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}

// 2^exponent of a normal number.
inline double power(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double x;
  memcpy(&x, &bits, 8);
  return x;
}

// sum + eight exact products: aligned to the largest, cut off below 24 bits, added, cut off again.
inline float cut_sum(float sum, const double* products) {
  double largest = std::fabs(static_cast<double>(sum)), plain = sum;
  for (int i = 0; i < 8; ++i) largest = std::max(largest, std::fabs(products[i])), plain += products[i];
  if (largest == 0 || !std::isfinite(plain)) return static_cast<float>(plain);
  uint64_t bits;
  memcpy(&bits, &largest, 8);
  const int unit = std::max(static_cast<int>(bits >> 52) - 1023 - 23, -149);
  const double scale = power(-unit);
  auto total = static_cast<int64_t>(sum * scale);
  for (int i = 0; i < 8; ++i) total += static_cast<int64_t>(products[i] * scale);
  for (int64_t over = 1; total / over >= 1 << 24 || total / over <= -(1 << 24);) {
    over *= 2;
    if (total / over < 1 << 24 && total / over > -(1 << 24)) total = total / over * over;
  }
  return static_cast<float>(static_cast<double>(total) * power(unit));
}

struct MmaFloats {
  float* d;
  const uint32_t* a;
  const uint32_t* w;
};

template <bool kBfloat>
inline void mma_floats(float* d, const uint32_t* a, const uint32_t* w) {
  MmaFloats mine{d, a, w};
  meet("mma.m16n8k16", &mine, [](Warp& warp) {
    ++machine.counters.products;
    static double halves[65536];  // the value of each
    if (halves[1] == 0)
      for (int h = 0; h < 65536; ++h) halves[h] = half_value(static_cast<uint16_t>(h), kBfloat);
    double as[16][16], ws[8][16];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto* one = static_cast<MmaFloats*>(warp.slots[lane]);
      const int g = lane / 4, q = lane % 4;
      for (int part = 0; part < 2; ++part)
        for (int x = 0; x < 2; ++x) {
          const int k = 8 * part + 2 * q + x;
          for (int h = 0; h < 2; ++h) as[g + 8 * h][k] = halves[one->a[2 * part + h] >> 16 * x & 0xFFFF];
          ws[g][k] = halves[one->w[part] >> 16 * x & 0xFFFF];
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto* one = static_cast<MmaFloats*>(warp.slots[lane]);
      for (int e = 0; e < 4; ++e)
        for (int part = 0; part < 2; ++part) {
          double products[8];
          for (int k = 0; k < 8; ++k)
            products[k] = as[lane / 4 + e / 2 * 8][8 * part + k] * ws[lane % 4 * 2 + e % 2][8 * part + k];
          one->d[e] = cut_sum(one->d[e], products);
        }
    }
  });
}

}  // namespace qk::emulator
