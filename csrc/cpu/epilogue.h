// int32 accumulators → codes, a row at a time, over Lanes: of requantize, and of a GEMM's tile while it is in L1.
//
//   requantize_row<false>(acc, n, by, out)     out[j] = clamp(round((acc[j] + bias_j) · m_j) + zero_j)          A5
//
// Parameters are one for the row or one a column (`by.one`). Rules and names: arithmetic.h, whose functions take over
// where a multiplier shifts left (`by.left`).
#pragma once
#include "../elementwise.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

// A step of the loops: kWidth elements from j, or the n that are left.
struct Whole {
  idx j;
  template <class T>
  QK_INLINE auto get(const T* p) const {
    return Lanes::load(p + j);
  }
};
struct Some {
  idx j, n;
  template <class T>
  QK_INLINE auto get(const T* p) const {
    return Lanes::some(p + j, n);
  }
};

// A parameter of a row: one for all, in a register, or an array beside the elements. A null pointer is zero.
template <bool IsOne, class T>
struct Parameter {
  using V = decltype(Lanes::splat(T()));
  V value;
  QK_INLINE explicit Parameter(const T* p) : value(Lanes::splat(p ? *p : T(0))) {}
  template <class At>
  QK_INLINE V get(At) const {
    return value;
  }
  template <class At>
  QK_INLINE V add_to(V x, At) const {
    return Lanes::add(x, value);
  }
};
template <class T>
struct Parameter<false, T> {
  using V = decltype(Lanes::splat(T()));
  const T* values;
  QK_INLINE explicit Parameter(const T* p) : values(p) {}
  template <class At>
  QK_INLINE V get(At at) const {
    return values ? at.get(values) : Lanes::splat(T(0));
  }
  template <class At>
  QK_INLINE V add_to(V x, At at) const {
    return values ? Lanes::add(x, at.get(values)) : x;
  }
};

// out[j] = step(j) for n elements, four steps at a time by quad(j); with Streams past the caches, from the first address
// that this takes.
template <bool Streams, class T, class Step, class Quad>
QK_INLINE inline void codes_of(idx n, T* out, const Step& step, const Quad& quad) {
  constexpr idx W = Lanes::kWidth;
  const auto rest = [&](idx j, idx stop) QK_INLINE {
    for (; j < stop; j += W) {
      const idx some = min_of(W, stop - j);
      Lanes::store_some(out + j, step(Some{j, some}), some);
    }
  };
  idx j = 0;
  if (Streams) {
    j = min_of(idx(-uintptr_t(out) % 64 / sizeof(T)), n);
    rest(0, j);
  }
  for (; j + 4 * W <= n; j += 4 * W) quad(j);
  rest(j, n);
}

template <bool Streams, class T, class Step>
QK_INLINE inline void codes_of(idx n, T* out, const Step& step) {
  constexpr idx W = Lanes::kWidth;
  codes_of<Streams>(n, out, step, [&](idx j) QK_INLINE {
    Lanes::template store4<Streams>(out + j, step(Whole{j}), step(Whole{j + W}), step(Whole{j + 2 * W}),
                                    step(Whole{j + 3 * W}));
  });
}

// ---------------------------------------------------------------- A5

// Beyond every code and every difference of two; small enough for Lanes::to_int. With a zero point for each column this clamp keeps
// the conversion defined, and the one to the type comes last (lemma 1).
constexpr int32_t kFarCode = 1 << 20;

template <Rounding R, bool IsOne, class At>
QK_INLINE inline Lanes::I rounded(Lanes::I x, At at, const Parameter<IsOne, float>& m,
                                  const Parameter<IsOne, double>& m64, const Parameter<IsOne, int32_t>& q,
                                  const Parameter<IsOne, int32_t>& e, int32_t low, int32_t high) {
  using L = Lanes;
  if constexpr (R == kHalfEven) {
    const L::F t = L::mul(L::to_float(x), m.get(at));
    return L::to_int(L::min(L::max(t, L::splat(float(low))), L::splat(float(high))));
  } else if constexpr (R == kHalfAway) {
    return L::half_away(x, m64.get(at), L::splat(double(low)), L::splat(double(high)));
  } else {  // e ≤ 0
    const L::I zero = L::splat(0), one = L::splat(1);
    const L::I right = L::sub(zero, e.get(at)), shifts = L::min(right, one);  // shifts: 1 where right > 0, else 0
    // half_up rounds once: at the second shift, or where there is none at the first.
    const L::I half = L::splat(1 << 30), nudge = R == kHalfUp ? L::both(L::sub(shifts, one), half) : half;
    L::I h = L::high_half(x, q.get(at), nudge);
    // Half away from zero is half up of h − 1 for a negative h: they differ where h + half is a multiple of 2^right.
    if (R == kGemmlowp) h = L::add(h, L::both(L::shift_right(h, L::splat(31)), L::sub(zero, shifts)));
    // (h + 2^(right−1)) >> right, without the sum, which may leave 32 bits
    const L::I up = L::both(L::shift_right(h, L::sub(right, shifts)), shifts);
    const L::I y = L::add(L::shift_right(h, right), up);
    return L::min(L::max(y, L::splat(low)), L::splat(high));
  }
}

template <Rounding R, bool IsOne, bool Streams, class T>
inline void requantize_as(const int32_t* acc, idx n, const Requantizer& by, T* out) {
  const Parameter<IsOne, float> m(by.m);
  const Parameter<IsOne, double> m64(by.m64);
  const Parameter<IsOne, int32_t> q(by.q), e(by.e), bias(by.bias), zero(by.zero);
  const int32_t z = IsOne && by.zero ? *by.zero : 0;
  const int32_t low = IsOne ? by.low - z : -kFarCode, high = IsOne ? by.high - z : kFarCode;
  codes_of<Streams>(n, out, [&](auto at) QK_INLINE {
    if (Streams) __builtin_prefetch(acc + at.j + 1024);  // a page ahead: prefetchers stop at each
    const Lanes::I x = bias.add_to(at.get(acc), at);
    const Lanes::I y = zero.add_to(rounded<R, IsOne>(x, at, m, m64, q, e, low, high), at);
    return IsOne ? y : Lanes::min(Lanes::max(y, Lanes::splat(by.low)), Lanes::splat(by.high));
  });
}

// Multipliers that shift left, and no lanes for them: a number at a time.
template <class T>
inline void requantize_left(const int32_t* acc, idx n, const Requantizer& by, T* out) {
  for (idx j = 0; j < n; ++j) {
    const idx p = by.one ? 0 : j;
    const int32_t z = by.zero ? by.zero[p] : 0, low = by.low - z, high = by.high - z;
    const int32_t x = add_wrapped(acc[j], by.bias ? by.bias[p] : 0);
    const Fixed m = {by.q[p], by.e[p]};
    const int32_t y = by.rounding == kGemmlowp ? round_gemmlowp(x, m, low, high)
                      : by.rounding == kRuy    ? round_ruy(x, m, low, high)
                                               : round_half_up(x, m, low, high);
    out[j] = T(y + z);
  }
}

template <bool IsOne, bool Streams, class T>
inline void requantize_by(const int32_t* acc, idx n, const Requantizer& by, T* out) {
  if (by.left) return requantize_left(acc, n, by, out);
  switch (by.rounding) {
    case kHalfEven:
      return requantize_as<kHalfEven, IsOne, Streams>(acc, n, by, out);
    case kGemmlowp:
      return requantize_as<kGemmlowp, IsOne, Streams>(acc, n, by, out);
    case kRuy:
      return requantize_as<kRuy, IsOne, Streams>(acc, n, by, out);
    case kHalfUp:
      return requantize_as<kHalfUp, IsOne, Streams>(acc, n, by, out);
    default:
      return requantize_as<kHalfAway, IsOne, Streams>(acc, n, by, out);
  }
}

template <bool Streams, class T>
inline void requantize_row(const int32_t* acc, idx n, const Requantizer& by, T* out) {
  by.one ? requantize_by<true, Streams>(acc, n, by, out) : requantize_by<false, Streams>(acc, n, by, out);
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
