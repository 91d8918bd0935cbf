// Four numbers of 32 bits: Lanes (lanes_avx512.h says what each member does) in vectors of GCC and Clang, for any CPU.
//
// No fast fma, so quotients are divided. Four lanes are an SSE2 or NEON register.
#pragma once
#include <string.h>

#include "../arithmetic.h"
#include "../kernel.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Lanes {
  static constexpr int kWidth = 4;
  static constexpr bool kFma = false;  // there is one, but a quotient is not worth it
  using F = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using U = uint32_t __attribute__((vector_size(16)));
  struct D {
    double lane[4];
  };

  static F load(const float* p) { return copied<F>(p, 4); }
  static I load(const int32_t* p) { return copied<I>(p, 4); }
  static D load(const double* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static F some(const float* p, idx n) { return copied<F>(p, n); }
  static I some(const int32_t* p, idx n) { return copied<I>(p, n); }
  static I load(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static I load(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static I load(const int16_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static I load(const uint16_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static D some(const double* p, idx n) { return copied<D>(p, n); }
  template <class T>
  static I some(const T* p, idx n) {
    I x = {};
    for (idx i = 0; i < n; ++i) x[i] = p[i];
    return x;
  }

  static F splat(float x) { return F{x, x, x, x}; }
  static I splat(int32_t x) { return I{x, x, x, x}; }
  static D splat(double x) { return {{x, x, x, x}}; }

  static F add(F x, F y) { return x + y; }
  static F mul(F x, F y) { return x * y; }
  static F div(F x, F y) { return x / y; }
  static F min(F x, F y) { return x < y ? x : y; }
  static F max(F x, F y) { return x > y ? x : y; }
  static F fma(F x, F y, F z) {  // a call of the C library each: exact, and slow
    for (int i = 0; i < 4; ++i) x[i] = __builtin_fmaf(x[i], y[i], z[i]);
    return x;
  }
  static F minus_product(F x, F y, F z) { return fma(-x, y, z); }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static I to_int(F x) {  // |x| ≤ 2²²: near_even of arithmetic.h
    const F sum = x + splat(12582912.0f);
    return I(U(sum) - U(splat(int32_t(0x4B400000))));
  }

  static I add(I x, I y) { return I(U(x) + U(y)); }
  static I sub(I x, I y) { return I(U(x) - U(y)); }
  static I min(I x, I y) { return x < y ? x : y; }
  static I max(I x, I y) { return x > y ? x : y; }
  static I both(I x, I y) { return x & y; }
  static I shift_right(I x, I by) { return x >> by; }
  static I magnitude(F x) { return I(x) & splat(0x7FFFFFFF); }
  static int32_t largest(I x) {
    int32_t most = 0;
    for (int i = 0; i < 4; ++i) most = x[i] > most ? x[i] : most;
    return most;
  }

  static I high_half(I x, I q, I nudge) {
    I h;
    for (int i = 0; i < 4; ++i) h[i] = int32_t((int64_t(x[i]) * q[i] + nudge[i]) >> 31);
    return h;
  }

  static I half_away(I x, D m, D low, D high) {
    I y;
    for (int i = 0; i < 4; ++i) {
      const double product = double(x[i]) * m.lane[i], t = product + (x[i] < 0 ? -0.5 : 0.5);
      y[i] = int32_t(t < low.lane[i] ? low.lane[i] : t > high.lane[i] ? high.lane[i] : t);
    }
    return y;
  }

  static void store(float* p, F x) { memcpy(p, &x, 16); }
  static void store_some(float* p, F x, idx n) { memcpy(p, &x, size_t(n) * 4); }
  static void stream(float* p, F x) { store(p, x); }
  static void store(int32_t* p, I x) { memcpy(p, &x, 16); }
  static void fence() {}

  template <bool Stream, class T>
  static void store4(T* out, I a, I b, I c, I d) {
    store_some(out, a, 4), store_some(out + 4, b, 4), store_some(out + 8, c, 4), store_some(out + 12, d, 4);
  }
  template <class T>
  static void store_some(T* p, I x, idx n) {
    constexpr int32_t low = T(-1) < T(0) ? -(1 << (8 * sizeof(T) - 1)) : 0;
    x = min(max(x, splat(low)), splat(low + (1 << (8 * sizeof(T))) - 1));
    for (idx i = 0; i < n; ++i) p[i] = T(x[i]);
  }

 private:
  template <class V, class T>
  static V copied(const T* p, idx n) {
    V x = {};
    memcpy(&x, p, size_t(n) * sizeof(T));
    return x;
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
