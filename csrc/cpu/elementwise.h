// The elementwise ops over Lanes, compiled once per ISA: real numbers → codes (A7, A8), codes → numbers (A9), and the
// rows of accumulators that epilogue.h turns into codes (A5).
//
// A quotient x/s without a division: r = 1/s rounded, q₀ = x·r, then one correction by the exact remainder,
// q = fma(fma(−q₀, s, x), r, q₀). It is the correctly rounded quotient while nothing over- or underflows, and that is
// so for kLeastScale ≤ s ≤ kGreatestScale with x clamped to the codes' range first; x so small that the remainder
// underflows gives |q| < ½ either way. (Why one correction is enough: with |q₀ − x/s| ≤ 1½ ulp the remainder errs
// below 2⁻⁴⁸ of the operands' scale, where no quotient but one ½ ulp away comes that near to a midpoint, and there the
// error is smaller than the distance.) Other scales are divided by: 10 cycles for 16 lanes where this takes 1½.
#pragma once
#include "epilogue.h"
#include "network.h"
#include "pools.h"
#include "reals.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr float kLeastScale = 7.888609e-31f, kGreatestScale = 1.2676506e30f;  // 2⁻¹⁰⁰, 2¹⁰⁰
constexpr idx kColumns = 512;       // whose parameters are prepared together: 10 KiB on the stack
constexpr idx kWorthPreparing = 4;  // rows that share them; fewer are divided

inline bool multiplies(float scale) { return Lanes::kFma && scale >= kLeastScale && scale <= kGreatestScale; }

// Elements that a read is ahead of its use where memory is the limit: the CPU's own prefetchers stop at each page.
constexpr idx kPage = 1024;

// ---------------------------------------------------------------- A7

template <bool IsOne>
struct Quantizer {  // low and high: of x where Multiplies, else of x/s less the zero point
  Parameter<IsOne, float> scale, reciprocal, low, high;
  Parameter<IsOne, int32_t> zero;
};

template <bool Multiplies, bool IsOne, bool Streams, class T>
inline void quantize_as(const float* x, idx n, const Quantizer<IsOne>& by, T* out) {
  using L = Lanes;
  codes_of<Streams>(n, out, [&](auto at) QK_INLINE {
    __builtin_prefetch(x + at.j + kPage);
    L::F t = at.get(x);
    if constexpr (Multiplies) {
      t = L::min(L::max(t, by.low.get(at)), by.high.get(at));  // NaN → low
      const L::F r = by.reciprocal.get(at), q0 = L::mul(t, r);
      t = L::fma(L::minus_product(q0, by.scale.get(at), t), r, q0);
    } else {
      t = L::div(t, by.scale.get(at));
      t = L::min(L::max(t, by.low.get(at)), by.high.get(at));
    }
    return by.zero.add_to(L::to_int(t), at);
  });
}

// All codes of an 8-bit type, one scale: the lower clamp, NaN and −∞ are what the conversion to integers and the
// saturating packs make of them anyway, and the zero point is added to 16-bit integers. 5½ instructions a vector where
// quantize_as has 8: 18 µs for 22 on 1 MiB.
template <bool Streams, class L, class T>  // L is Lanes: named so that Lanes without an fma need not have its members
inline void quantize_full(const float* x, idx n, const Quantizer<true>& by, int32_t zero, T* out) {
  constexpr idx W = L::kWidth;
  const auto quotient = [&](typename L::F t) QK_INLINE {
    const typename L::F q0 = L::mul(t, by.reciprocal.value);
    return L::fma(L::minus_product(q0, by.scale.value, t), by.reciprocal.value, q0);
  };
  const auto step = [&](auto at) QK_INLINE {
    return L::add(L::to_int(quotient(L::min(L::max(at.get(x), by.low.value), by.high.value))), by.zero.value);
  };
  const auto code = [&](idx j) QK_INLINE {
    __builtin_prefetch(x + j + kPage);
    return L::to_int(quotient(L::min(by.high.value, L::load(x + j))));
  };
  const auto zero16 = L::splat16(zero);
  codes_of<Streams>(n, out, step, [&](idx j) QK_INLINE {
    L::template store4_plus<Streams>(out + j, code(j), code(j + W), code(j + 2 * W), code(j + 3 * W), zero16);
  });
}

template <bool Streams, class T>
inline void quantize_run(const float* x, idx n, float scale, int32_t zero, int32_t low, int32_t high, T* out) {
  const bool fast = multiplies(scale);
  const float unit = fast ? scale : 1.0f, reciprocal = 1.0f / unit;
  const float least = float(low - zero) * unit, most = float(high - zero) * unit;
  using P = Parameter<true, float>;
  const Quantizer<true> by = {P(&scale), P(&reciprocal), P(&least), P(&most), Parameter<true, int32_t>(&zero)};
  if constexpr (Lanes::kFma && sizeof(T) == 1) {
    if (fast && high - low == 255) return quantize_full<Streams, Lanes>(x, n, by, zero, out);
  }
  fast ? quantize_as<true, true, Streams>(x, n, by, out) : quantize_as<false, true, Streams>(x, n, by, out);
}

// The parameters of up to kColumns columns.
struct Columns {
  float reciprocal[kColumns], low[kColumns], high[kColumns];
  bool fast;

  Columns(const float* scale, const int32_t* zero, idx n, int32_t least, int32_t most, bool shared) {
    fast = Lanes::kFma && shared;
    if (fast)
      for (idx j = 0; j < n; ++j) fast &= scale[j] >= kLeastScale && scale[j] <= kGreatestScale;
    for (idx j = 0; j < n; ++j) {
      const int32_t z = zero ? zero[j] : 0;
      low[j] = float(least - z), high[j] = float(most - z);
    }
    if (fast)
      for (idx j = 0; j < n; ++j) reciprocal[j] = 1.0f / scale[j], low[j] *= scale[j], high[j] *= scale[j];
  }
};

// The rows i … stop of `rows` that have row i's scales, and that row.
struct Share {
  idx stop, scale_row;
  Share(const Placement& at, idx i, Range rows) {
    scale_row = i / at.repeat % at.rows;
    stop = at.rows == 1 ? rows.end : min_of((i / at.repeat + 1) * at.repeat, rows.end);
  }
};

inline bool by_column(const Placement& at) { return at.group == 1 && at.columns > 1; }

// x: element number `first`.
template <bool Streams, class T>
inline void quantize_columns(const Elementwise& e, const float* x, idx first, Range rows, Range columns, T* out) {
  for (idx i = rows.begin, stop; i < rows.end; i = stop) {
    const Share share(e.at, i, rows);
    stop = share.stop;
    for (idx j = columns.begin; j < columns.end; j += kColumns) {
      const idx n = min_of(kColumns, columns.end - j), number = share.scale_row * e.at.columns + j;
      const float* const scale = e.scale + number;
      const int32_t* const zero = e.zero ? e.zero + number : nullptr;
      const Columns of(scale, zero, n, e.low, e.high, stop - i >= kWorthPreparing);
      using P = Parameter<false, float>;
      const Quantizer<false> by = {P(scale), P(of.reciprocal), P(of.low), P(of.high), Parameter<false, int32_t>(zero)};
      for (idx r = i; r < stop; ++r) {
        const idx at = r * e.inner + j;
        const float* const from = x + (at - first);
        of.fast ? quantize_as<true, false, Streams>(from, n, by, out + at)
                : quantize_as<false, false, Streams>(from, n, by, out + at);
      }
    }
  }
}

// run(at, n, number) for every run of n elements with one scale: number `number`, elements from `at`. `whole`: a run is
// a row, whose scales begin at that number.
template <class Run>
QK_INLINE inline void for_runs(const Elementwise& e, Range rows, Range columns, bool whole, const Run& run) {
  for (idx i = rows.begin; i < rows.end; ++i) {
    const idx scale_row = i / e.at.repeat % e.at.rows * e.at.columns;
    for (idx j = columns.begin, stop; j < columns.end; j = stop) {
      stop = whole ? columns.end : min_of((j / e.at.group + 1) * e.at.group, columns.end);
      run(i * e.inner + j, stop - j, scale_row + j / e.at.group);
    }
  }
}

template <class Run>
QK_INLINE inline void for_runs(const Elementwise& e, Range rows, Range columns, const Run& run) {
  for_runs(e, rows, columns, false, run);
}

template <bool Streams, class T>
inline void quantize_rows(const Elementwise& e, const float* x, idx first, Range rows, Range columns) {
  T* const out = static_cast<T*>(e.out);
  if (by_column(e.at)) return quantize_columns<Streams>(e, x, first, rows, columns, out);
  for_runs(e, rows, columns, [&](idx at, idx n, idx number) {
    quantize_run<Streams>(x + (at - first), n, e.scale[number], e.zero ? e.zero[number] : 0, e.low, e.high, out + at);
  });
}

template <class X, class T>
void quantize_block(const Elementwise& e, Range rows, Range columns) {
  for (idx i = rows.begin; i < rows.end; ++i) {
    const idx begin = i * e.inner + columns.begin;
    for_strips(static_cast<const X*>(e.in) + begin, columns.end - columns.begin, [&](const float* x, idx j, idx n) {
      const Range some = {columns.begin + j, columns.begin + j + n};
      quantize_rows<false, T>(e, x, begin + j, {i, i + 1}, some);
    });
  }
}

// Of float32, whose rows need not be looked at one by one.
template <class T>
void quantize_block_f32(const Elementwise& e, Range rows, Range columns) {
  const float* const x = static_cast<const float*>(e.in);
  if (!e.stream) return quantize_rows<false, T>(e, x, 0, rows, columns);
  quantize_rows<true, T>(e, x, 0, rows, columns);
  Lanes::fence();
}

// ---------------------------------------------------------------- A9

template <bool IsOne, bool Streams, class T>
inline void dequantize_as(const T* q, idx n, const float* scale, const int32_t* zero, float* out) {
  using L = Lanes;
  constexpr idx W = L::kWidth;
  const Parameter<IsOne, float> s(scale);
  const Parameter<IsOne, int32_t> z(zero);
  const auto value = [&](auto at) QK_INLINE { return L::mul(L::to_float(L::sub(at.get(q), z.get(at))), s.get(at)); };
  const auto rest = [&](idx j, idx stop) QK_INLINE {
    for (; j < stop; j += W) {
      const idx some = min_of(W, stop - j);
      L::store_some(out + j, value(Some{j, some}), some);
    }
  };
  idx j = 0;
  if (Streams) {
    j = min_of(idx(-uintptr_t(out) % 64 / 4), n);
    rest(0, j);
  }
  for (; j + 4 * W <= n; j += 4 * W)
    for (int u = 0; u < 4; ++u) {
      const L::F x = value(Whole{j + u * W});
      Streams ? L::stream(out + j + u * W, x) : L::store(out + j + u * W, x);
    }
  rest(j, n);
}

template <bool Streams, class T>
inline void dequantize_rows(const Elementwise& e, Range rows, Range columns) {
  const T* const q = static_cast<const T*>(e.in);
  float* const out = static_cast<float*>(e.out);
  const auto zero = [&](idx number) { return e.zero ? e.zero + number : nullptr; };
  if (by_column(e.at)) {
    const idx n = columns.end - columns.begin;
    for (idx i = rows.begin; i < rows.end; ++i) {
      const idx number = i / e.at.repeat % e.at.rows * e.at.columns + columns.begin, at = i * e.inner + columns.begin;
      dequantize_as<false, Streams>(q + at, n, e.scale + number, zero(number), out + at);
    }
    return;
  }
  for_runs(e, rows, columns, [&](idx at, idx n, idx number) {
    dequantize_as<true, Streams>(q + at, n, e.scale + number, zero(number), out + at);
  });
}

template <class T>
void dequantize_block_f32(const Elementwise& e, Range rows, Range columns) {
  if (!e.stream) return dequantize_rows<false, T>(e, rows, columns);
  dequantize_rows<true, T>(e, rows, columns);
  Lanes::fence();
}

// To other real numbers, by strips of float32.
template <class X, class T>
void dequantize_block(const Elementwise& e, Range rows, Range columns) {
  X* const out = static_cast<X*>(e.out);
  float strip[kStrip];
  const bool each = by_column(e.at);  // has a scale of its own
  for_runs(e, rows, columns, each, [&](idx at, idx n, idx number) {
    for (idx j = 0; j < n; j += kStrip) {
      const idx some = min_of(kStrip, n - j), at_scale = number + (each ? j : 0);
      const T* const q = static_cast<const T*>(e.in) + at + j;
      const int32_t* const zero = e.zero ? e.zero + at_scale : nullptr;
      if (each) dequantize_as<false, false>(q, some, e.scale + at_scale, zero, strip);
      else dequantize_as<true, false>(q, some, e.scale + at_scale, zero, strip);
      narrow(strip, out + at + j, some);
    }
  });
}

// ---------------------------------------------------------------- A8

// The largest magnitude as bits, an infinity or NaN included.
inline int32_t largest_magnitude(const float* x, idx n) {
  using L = Lanes;
  constexpr idx W = L::kWidth;
  L::I most[4] = {L::splat(0), L::splat(0), L::splat(0), L::splat(0)};
  idx j = 0;
  for (; j + 4 * W <= n; j += 4 * W)
    for (int u = 0; u < 4; ++u) most[u] = L::max(most[u], L::magnitude(L::load(x + j + u * W)));
  for (; j < n; j += W) most[0] = L::max(most[0], L::magnitude(L::some(x + j, min_of(W, n - j))));
  return L::largest(L::max(L::max(most[0], most[1]), L::max(most[2], most[3])));
}

// Where something is not finite: a second look that leaves it out.
inline Extent finite_extent(const float* x, idx n) {
  Extent found = {0, 0, true};
  for (idx j = 0; j < n; ++j) {
    if (!is_finite(x[j])) continue;
    if (x[j] < found.low) found.low = x[j];
    if (x[j] > found.high) found.high = x[j];
  }
  return found;
}

inline Extent symmetric_extent(const float* x, idx n) {
  const int32_t bits = largest_magnitude(x, n);
  if (bits < 0x7F800000) {
    float amax;
    memcpy(&amax, &bits, 4);
    return {-amax, amax, false};
  }
  Extent found = finite_extent(x, n);
  const float amax = -found.low > found.high ? -found.low : found.high;
  return {-amax, amax, true};
}

inline Extent asymmetric_extent(const float* x, idx n) {
  using L = Lanes;
  constexpr idx W = L::kWidth;
  const L::F zero = L::splat(0.0f);
  L::F low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
  const auto see = [&](int u, L::F v) QK_INLINE {  // a NaN is passed over
    low[u] = L::min(v, low[u]);
    high[u] = L::max(v, high[u]);
  };
  idx j = 0;
  for (; j + 4 * W <= n; j += 4 * W)
    for (int u = 0; u < 4; ++u) see(u, L::load(x + j + u * W));
  for (; j < n; j += W) see(0, L::some(x + j, min_of(W, n - j)));
  for (int u = 1; u < 4; ++u) low[0] = L::min(low[0], low[u]), high[0] = L::max(high[0], high[u]);
  float lows[W], highs[W];
  L::store(lows, low[0]), L::store(highs, high[0]);
  for (idx i = 1; i < W; ++i) {
    lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
    highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
  }
  if (lows[0] < -kFloatMax || highs[0] > kFloatMax) return finite_extent(x, n);
  return {lows[0], highs[0], false};
}

template <class T>
inline int32_t sum_of(const T* codes, idx n) {
  uint32_t sum = 0;
  for (idx j = 0; j < n; ++j) sum += uint32_t(int32_t(codes[j]));
  return int32_t(sum);
}

constexpr idx kRowAhead = 8192;  // elements of a row beside which another fits the L1 or nearly

template <bool Streams>
inline void symmetric_codes(const float* x, idx n, Symmetric by, bool special, int32_t largest, int8_t* out) {
  if (special) {
    for (idx j = 0; j < n; ++j) out[j] = int8_t(quantize_symmetric(x[j], by.reciprocal, largest));
    return;
  }
  const Parameter<true, float> reciprocal(&by.reciprocal);
  // The row after this one is on its way while this one, which the caches hold, is made codes of: prefetchers stop at
  // each page, and a row is a page or a few.
  const float* const ahead = n <= kRowAhead ? x + n : x;
  codes_of<Streams>(n, out, [&](auto at) QK_INLINE {  // within ±Q by lemma 5
    __builtin_prefetch(ahead + at.j);
    return Lanes::to_int(Lanes::mul(at.get(x), reciprocal.get(at)));
  });
}

template <class X, class T>
Extent dynamic_extent(const Elementwise& e, Range elements) {
  Extent whole = {0, 0, false};
  const X* const first = static_cast<const X*>(e.in) + elements.begin;
  for_strips(first, elements.end - elements.begin, [&](const float* x, idx, idx n) {
    const Extent found = T(-1) < T(0) ? symmetric_extent(x, n) : asymmetric_extent(x, n);
    whole = {found.low < whole.low ? found.low : whole.low, found.high > whole.high ? found.high : whole.high,
             whole.special || found.special};
  });
  return whole;
}

template <bool Streams, class X, class T>
inline void found_codes(const Elementwise& e, Range elements, Extent extent) {
  T* const out = static_cast<T*>(e.out) + elements.begin;
  const Symmetric by = symmetric(extent.high, e.high);
  const Asymmetric found = asymmetric(extent.low, extent.high, e.high);
  const X* const first = static_cast<const X*>(e.in) + elements.begin;
  for_strips(first, elements.end - elements.begin, [&](const float* x, idx j, idx n) {
    if constexpr (T(-1) < T(0)) symmetric_codes<Streams>(x, n, by, extent.special, e.high, out + j);
    else quantize_run<Streams>(x, n, found.scale, found.zero, e.low, e.high, out + j);
  });
}

template <class X, class T>
int32_t dynamic_codes(const Elementwise& e, Range elements, Extent extent) {
  if (e.stream && sizeof(X) == 4) found_codes<sizeof(X) == 4, X, T>(e, elements, extent), Lanes::fence();
  else found_codes<false, X, T>(e, elements, extent);
  return e.sums ? sum_of(static_cast<const T*>(e.out) + elements.begin, elements.end - elements.begin) : 0;
}

template <class X, class T>
void dynamic_block(const Elementwise& e, Range rows, Range columns) {
  const idx groups = ceil_div(e.inner, e.at.group);
  for (idx i = rows.begin; i < rows.end; ++i)
    for (idx j = columns.begin; j < columns.end; j += e.at.group) {
      const idx number = i * groups + j / e.at.group, at = i * e.inner + j;
      const Range elements = {at, at + min_of(e.at.group, columns.end - j)};
      const Extent extent = dynamic_extent<X, T>(e, elements);
      const int32_t sum = dynamic_codes<X, T>(e, elements, extent);
      if (e.sums) e.sums[number] = sum;
      const Asymmetric unsigned_range = asymmetric(extent.low, extent.high, e.high);
      e.found_scale[number] = T(-1) < T(0) ? symmetric(extent.high, e.high).scale : unsigned_range.scale;
      e.found_zero[number] = T(-1) < T(0) ? 0 : unsigned_range.zero;
    }
}

// ---------------------------------------------------------------- A5

// `by` with its arrays moved to number `first`.
inline Requantizer moved(const Requantizer& by, idx first, bool one) {
  Requantizer to = by;
  to.one = one;
  if (by.m) to.m += first;
  if (by.m64) to.m64 += first;
  if (by.q) to.q += first, to.e += first;
  if (by.bias) to.bias += first;
  if (by.zero) to.zero += first;
  return to;
}

inline bool any_left(const int32_t* e, idx n) {
  int32_t most = 0;
  if (e)
    for (idx j = 0; j < n; ++j) most = e[j] > most ? e[j] : most;
  return most > 0;
}

template <bool Streams, class T>
inline void requantize_rows(const Elementwise& e, Range rows, Range columns) {
  const int32_t* const acc = static_cast<const int32_t*>(e.in);
  T* const out = static_cast<T*>(e.out);
  if (!by_column(e.at)) {
    for_runs(e, rows, columns, [&](idx at, idx n, idx number) {
      Requantizer by = moved(e.by, number, true);
      by.left = any_left(by.e, 1);
      requantize_row<Streams>(acc + at, n, by, out + at);
    });
    return;
  }
  for (idx i = rows.begin, stop; i < rows.end; i = stop) {
    const Share share(e.at, i, rows);
    stop = share.stop;
    Requantizer by = moved(e.by, share.scale_row * e.at.columns + columns.begin, false);
    by.left = any_left(by.e, columns.end - columns.begin);
    for (idx r = i; r < stop; ++r) {
      const idx at = r * e.inner + columns.begin;
      requantize_row<Streams>(acc + at, columns.end - columns.begin, by, out + at);
    }
  }
}

template <class T>
void requantize_block(const Elementwise& e, Range rows, Range columns) {
  if (!e.stream) return requantize_rows<false, T>(e, rows, columns);
  requantize_rows<true, T>(e, rows, columns);
  Lanes::fence();
}

// ---------------------------------------------------------------- the rows

#define QK_STR2(x) #x
#define QK_STR(x) QK_STR2(x)

// Needs in scope kElementNs, the nominal cost of quantizing an element, kLookupNs, and QK_LOOKUP, the block of lookup.
#define QK_ELEMENTWISE(op, types, in, out, ...) {op, types, QK_STR(QK_ISA), in, out, kElementNs, __VA_ARGS__}
#define QK_ELEMENTWISE_REAL(letters, T, real, X)                                                          \
  QK_ELEMENTWISE("quantize", real letters, sizeof(X), sizeof(T), quantize_block<X, T>, nullptr, nullptr), \
      QK_ELEMENTWISE("dequantize", letters real, sizeof(T), sizeof(X), dequantize_block<X, T>, nullptr, nullptr)
#define QK_ELEMENTWISE_OF(letters, T)                                                                       \
  QK_ELEMENTWISE("quantize", "f32" letters, 4, sizeof(T), quantize_block_f32<T>, nullptr, nullptr),         \
      QK_ELEMENTWISE("dequantize", letters "f32", sizeof(T), 4, dequantize_block_f32<T>, nullptr, nullptr), \
      QK_ELEMENTWISE_REAL(letters, T, "f16", Half), QK_ELEMENTWISE_REAL(letters, T, "bf16", Bfloat),        \
      QK_ELEMENTWISE_REAL(letters, T, "f64", double),                                                       \
      QK_ELEMENTWISE("requantize", "s32" letters, 4, sizeof(T), requantize_block<T>, nullptr, nullptr)
#define QK_ELEMENTWISE_DYNAMIC(real, X, letters, T)                                                         \
  QK_ELEMENTWISE("dynamic_quantize", real letters, sizeof(X), 1, dynamic_block<X, T>, dynamic_extent<X, T>, \
                 dynamic_codes<X, T>)
#define QK_ELEMENTWISE_DYNAMICS(letters, T)                                                          \
  QK_ELEMENTWISE_DYNAMIC("f32", float, letters, T), QK_ELEMENTWISE_DYNAMIC("f16", Half, letters, T), \
      QK_ELEMENTWISE_DYNAMIC("bf16", Bfloat, letters, T), QK_ELEMENTWISE_DYNAMIC("f64", double, letters, T)
#define QK_SOFTMAX(letters, T) \
  {"softmax", letters letters, QK_STR(QK_ISA), 1, 1, kElementNs * 8, softmax_block<T>, nullptr, nullptr, true}
#define QK_ELEMENTWISE_ROWS                                                              \
  static const ElementwiseRow elementwise_rows[] = {                                     \
      QK_ELEMENTWISE_OF("s8", int8_t),                                                   \
      QK_ELEMENTWISE_OF("u8", uint8_t),                                                  \
      QK_ELEMENTWISE_OF("s16", int16_t),                                                 \
      QK_ELEMENTWISE_OF("u16", uint16_t),                                                \
      QK_ELEMENTWISE_DYNAMICS("s8", int8_t),                                             \
      QK_ELEMENTWISE_DYNAMICS("u8", uint8_t),                                            \
      QK_NETWORK_ROWS,                                                                   \
      QK_SOFTMAX("s8", int8_t),                                                          \
      QK_SOFTMAX("u8", uint8_t),                                                         \
      {"lookup", "u8u8", QK_STR(QK_ISA), 1, 1, kLookupNs, QK_LOOKUP, nullptr, nullptr}}; \
  const ElementwiseList elementwise_list = {elementwise_rows, int(sizeof elementwise_rows / sizeof *elementwise_rows)};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
