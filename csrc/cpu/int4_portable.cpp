// linear, weights of int4.h, portable: plain C++ for any CPU, a panel of 16 columns as arrays that compilers make
// vectors of. The fma is the C library's, which rounds once with or without an instruction for it.
// Contract and drawing: int4_direct.h.
#define QK_ISA portable
#define QK_PLAIN_LOOPS
#include <math.h>

#include "lanes_portable.h"
#include "int4_rows.h"

namespace qk {
namespace portable {
namespace {

constexpr double kFloatGops = 2, kGops = 4, kCallUs = 0.1, kGbS = 3;

struct Sixteen {
  static constexpr int kLanes = 16, kMaxRows = 4, kMaxSums = 4, kFloatRows = 2;
  static constexpr bool kOneSigned = false, kSplits = false;
  struct Reg {
    union {
      uint8_t byte[64];
      uint32_t lane[16];
    };
  };
  struct Float {
    float lane[16];
  };
  struct Part {};

  template <class F>
  static Reg lanes(const F& f) {
    Reg x;
    for (int i = 0; i < 16; ++i) x.lane[i] = f(i);
    return x;
  }
  template <class F>
  static Float floats(const F& f) {
    Float x;
    for (int i = 0; i < 16; ++i) x.lane[i] = f(i);
    return x;
  }

  static Reg zero() { return start(0); }
  static Float zero_float() {
    return floats([](int) { return 0.0f; });
  }
  static Reg load(const uint8_t* p) {
    Reg x;
    memcpy(x.byte, p, 64);
    return x;
  }
  static Reg flip(const Reg& x) {
    return lanes([&](int i) { return x.lane[i] ^ 0x80808080u; });
  }
  template <int Bits>
  static Reg plane(const Reg& x, int i) {
    Reg y;
    for (int b = 0; b < 64; ++b) y.byte[b] = uint8_t(x.byte[b] >> (i * Bits) & ((1 << Bits) - 1));
    return y;
  }
  static Reg splat(const uint8_t* four) {
    Reg x;
    for (int b = 0; b < 64; ++b) x.byte[b] = four[b % 4];
    return x;
  }
  template <bool ASigned, int>
  static void dot(Reg& acc, Part&, const Reg& w, const Reg& a, int) {
    for (int i = 0; i < 16; ++i) {
      int32_t sum = 0;
      for (int t = 0; t < 4; ++t) sum += int32_t(w.byte[4 * i + t]) * element<ASigned>(a.byte[4 * i + t]);
      acc.lane[i] += uint32_t(sum);
    }
  }
  template <int>
  static void close(Reg&, Part&) {}
  static Reg start(int32_t x) {
    return lanes([&](int) { return uint32_t(x); });
  }
  static Reg bytes(const uint8_t* p) {
    return lanes([&](int i) { return uint32_t(p[i]); });
  }
  static Reg words(const int32_t* p) {
    return lanes([&](int i) { return uint32_t(p[i]); });
  }
  static Reg mul(const Reg& x, const Reg& y) {
    return lanes([&](int i) { return x.lane[i] * y.lane[i]; });
  }
  static Reg times(const Reg& x, int32_t y) {
    return lanes([&](int i) { return x.lane[i] * uint32_t(y); });
  }
  static Reg add(const Reg& x, const Reg& y) {
    return lanes([&](int i) { return x.lane[i] + y.lane[i]; });
  }
  static Reg sub(const Reg& x, const Reg& y) {
    return lanes([&](int i) { return x.lane[i] - y.lane[i]; });
  }
  static Float to_float(const Reg& x) {
    return floats([&](int i) { return float(int32_t(x.lane[i])); });
  }
  static Float scale(const void* scales, ScaleType type, idx at) {
    if (type == kScaleF32) return floats([&](int i) { return static_cast<const float*>(scales)[at + i]; });
    const uint16_t* const half = static_cast<const uint16_t*>(scales) + at;
    return floats([&](int i) {
      const uint32_t bits = uint32_t(half[i]) << (type == kScaleF16 ? 13 : 16);
      float x;
      memcpy(&x, &bits, 4);
      return type == kScaleF16 ? x * 0x1p112f : x;  // exact: a scale is > 0 and finite
    });
  }
  static Float fma(const Float& x, const Float& y, const Float& z) {
    return floats([&](int i) { return fmaf(x.lane[i], y.lane[i], z.lane[i]); });
  }
  template <int Bits>
  static Float value(const Reg& x, int shift) {
    return floats([&](int i) { return float((x.lane[i] >> shift & ((1u << Bits) - 1)) + (Bits == 8 ? 1u << 23 : 0)); });
  }
  static Float sub_float(const Float& x, const Float& y) {
    return floats([&](int i) { return x.lane[i] - y.lane[i]; });
  }
  static Float add_float(const Float& x, const Float& y) {
    return floats([&](int i) { return x.lane[i] + y.lane[i]; });
  }
  static Float splat_float(float x) {
    return floats([&](int) { return x; });
  }
  static void store(int32_t* p, const Reg& x) { memcpy(p, x.lane, 64); }
  static void store_float(void* p, const Float& x) { memcpy(p, x.lane, 64); }
};

}  // namespace

QK_INT4_ROWS(Sixteen, "4x16", QK_FLOAT_ROWS(Sixteen, "2x16"))

}  // namespace portable
}  // namespace qk
