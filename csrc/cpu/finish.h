// A tile of accumulators, while it is in L1, becomes what the caller wants: real numbers or codes, written once.
//
//   finish_rows(e, sums, stride, i0, rows, j0, cols)     rows i0 … of columns j0 …; sums are whole, zero points applied
//
// Columns are walked in vectors, rows inside, so that what belongs to columns is loaded once a tile. Half-to-even codes
// and real numbers are made here; the other roundings by epilogue.h, a row at a time. Rules: docs/arithmetic.md A5, A6;
// no product and sum are contracted. min and max leave a NaN and −0 in their second operand alone (A6's clamp).
// f16, bf16 and the curves go through rows of real numbers in L1 (reals.h, curves.h).
#pragma once
#include "../epilogue.h"
#include "curves.h"
#include "epilogue.h"
#include "reals.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kFinishColumns = 64;  // the widest tile

template <class T>
inline T* out_row(const Epilogue& e, idx i, idx j) {
  return static_cast<T*>(e.out) + i * e.out_row + j;
}

template <class At>
QK_INLINE inline Lanes::F residual_of(const Epilogue& e, At at, idx i, idx j) {
  using L = Lanes;
  const idx offset = i * e.residual_row + j;
  if (e.residual_type == Residual::f32) return at.get(static_cast<const float*>(e.residual) + offset);
  const L::I codes = e.residual_type == Residual::s8 ? at.get(static_cast<const int8_t*>(e.residual) + offset)
                                                     : at.get(static_cast<const uint8_t*>(e.residual) + offset);
  return L::mul(L::to_float(L::sub(codes, L::splat(e.residual_zero))), L::splat(e.residual_scale));
}

QK_INLINE inline void put_some(float* p, Lanes::F x, idx n) {
  n == Lanes::kWidth ? Lanes::store(p, x) : Lanes::store_some(p, x, n);
}

// The integer bias of a vector of columns: once, or again in every row.
template <class At>
struct IntBias {
  const Epilogue& e;
  At at;
  idx j;
  Lanes::I once;
  IntBias(const Epilogue& epilogue, At where, idx column) : e(epilogue), at(where), j(column), once(Lanes::splat(0)) {
    if (e.bias && !e.bias_row) once = at.get(e.bias + j);
  }
  QK_INLINE Lanes::I add(Lanes::I x, idx i) const {
    if (!e.bias) return x;
    return Lanes::add(x, e.bias_row ? at.get(e.bias + i * e.bias_row + j) : once);
  }
};

// y[row][…] or out: real numbers of `n` ≤ kWidth columns from j, c columns into the tile.
template <class At, class Put>
QK_INLINE inline void real_columns(const Epilogue& e, At at, const int32_t* sums, idx stride, idx i0, idx rows, idx j,
                                   const Put& put) {
  using L = Lanes;
  const IntBias<At> bias(e, at, j);
  const L::F w = e.float_sums ? L::splat(1.0f) : at.get(e.w_scale + j),
             added = e.float_bias ? at.get(e.float_bias + j) : L::splat(0.0f);
  const L::F low = L::splat(e.clamp_low), high = L::splat(e.clamp_high);
  for (idx r = 0; r < rows; ++r, sums += stride) {
    const idx i = i0 + r;
    const L::F c = L::mul(L::splat(e.a_scale[i * e.a_scale_step]), w);  // times 1 where the sums are weighed
    L::F y = L::mul(
        e.float_sums ? L::load(reinterpret_cast<const float*>(sums)) : L::to_float(bias.add(L::load(sums), i)), c);
    if (e.float_bias) y = L::add(y, added);
    if (e.residual_type != Residual::none) y = L::add(y, residual_of(e, at, i, j));
    if (e.clamps) y = L::min(high, L::max(low, y));
    put(r, y);
  }
}

// Codes of columns from j, half to even.
template <class T, class At>
QK_INLINE inline void code_columns(const Epilogue& e, At at, const int32_t* sums, idx stride, idx i0, idx rows, idx j,
                                   idx n) {
  using L = Lanes;
  const IntBias<At> bias(e, at, j);
  const L::F once = at.get(e.m + j), low = L::splat(float(e.low - e.zero)), high = L::splat(float(e.high - e.zero));
  const L::I zero = L::splat(e.zero);
  for (idx r = 0; r < rows; ++r, sums += stride) {
    const idx i = i0 + r;
    L::F t = L::to_float(bias.add(L::load(sums), i));
    t = L::mul(t, e.m_row ? at.get(e.m + i * e.m_row + j) : once);
    if (e.residual_type != Residual::none) t = L::add(t, residual_of(e, at, i, j));
    t = L::min(L::max(t, low), high);  // NaN becomes low
    L::store_some(out_row<T>(e, i, j), L::add(L::to_int(t), zero), n);
  }
}

// The same of 8-bit codes, four vectors of a row at a time: they are packed together, and their zero point is one
// addition. A vector at a time, 3×3 depthwise convolutions take 10 to 18 % longer. A clamp below the type's least code
// has nothing to do: what a conversion cannot hold becomes the least integer, as NaN does.
template <class T, bool HasResidual, bool ClampsLow, class L = Lanes>
QK_INLINE inline void code_quads(const Epilogue& e, const int32_t* sums, idx stride, idx i0, idx rows, idx j) {
  constexpr idx W = L::kWidth;
  const typename L::F m[4] = {L::load(e.m + j), L::load(e.m + j + W), L::load(e.m + j + 2 * W),
                              L::load(e.m + j + 3 * W)};
  typename L::I bias[4];
  for (int v = 0; v < 4; ++v) bias[v] = e.bias ? L::load(e.bias + j + v * W) : L::splat(0);
  const typename L::F low = L::splat(float(e.low - e.zero)), high = L::splat(float(e.high - e.zero));
  const typename L::I zero = L::splat16(e.zero);
  for (idx r = 0; r < rows; ++r, sums += stride) {
    typename L::I y[4];
    unroll<4>([&](auto v) QK_INLINE {
      typename L::F t = L::mul(L::to_float(L::add(L::load(sums + v * W), bias[v])), m[v]);
      if (HasResidual) t = L::add(t, residual_of(e, Whole{0}, i0 + r, j + v * W));
      y[v] = L::to_int(L::min(high, ClampsLow ? L::max(t, low) : t));
    });
    L::template store4_plus<false>(out_row<T>(e, i0 + r, j), y[0], y[1], y[2], y[3], zero);
  }
}

// run(at, c, n) for each vector of n ≤ kWidth columns of a tile, c columns into it.
template <class Run>
QK_INLINE inline void for_vectors(idx cols, const Run& run) {
  idx c = 0;
  for (; c + Lanes::kWidth <= cols; c += Lanes::kWidth) run(Whole{0}, c, idx(Lanes::kWidth));
  if (c < cols) run(Some{0, cols - c}, c, cols - c);
}

inline void cast_row(const Epilogue& e, const float* y, idx i, idx j, idx n) {
  if (e.type == Written::f32) memcpy(out_row<float>(e, i, j), y, size_t(n) * 4);
  else if (e.type == Written::f16) narrow(y, out_row<Half>(e, i, j), n);
  else narrow(y, out_row<Bfloat>(e, i, j), n);
}

// float32 results where the sums were.
inline void real_in_place(const Epilogue& e, int32_t* sums, idx stride, idx i0, idx rows, idx j0, idx cols) {
  for_vectors(cols, [&](auto at, idx c, idx n) QK_INLINE {
    real_columns(e, at, sums + c, stride, i0, rows, j0 + c, [&](idx r, Lanes::F y) QK_INLINE {
      float* const to = reinterpret_cast<float*>(sums + r * stride + c);
      put_some(to, y, n);
    });
  });
  if (e.curve != Curve::none)
    for (idx r = 0; r < rows; ++r) activate_row(e.curve, reinterpret_cast<float*>(sums + r * stride), cols);
}

inline void finish_real(const Epilogue& e, const int32_t* sums, idx stride, idx i0, idx rows, idx j0, idx cols) {
  if (e.type == Written::f32 && e.curve == Curve::none) {
    for_vectors(cols, [&](auto at, idx c, idx n) QK_INLINE {
      real_columns(e, at, sums + c, stride, i0, rows, j0 + c,
                   [&](idx r, Lanes::F y) QK_INLINE { put_some(out_row<float>(e, i0 + r, j0 + c), y, n); });
    });
    return;
  }
  constexpr idx kRows = 8;
  float values[kRows * kFinishColumns];
  for (idx r0 = 0; r0 < rows; r0 += kRows) {
    const idx some = min_of(kRows, rows - r0);
    for_vectors(cols, [&](auto at, idx c, idx) QK_INLINE {
      real_columns(e, at, sums + r0 * stride + c, stride, i0 + r0, some, j0 + c,
                   [&](idx r, Lanes::F y) QK_INLINE { Lanes::store(values + r * kFinishColumns + c, y); });
    });
    for (idx r = 0; r < some; ++r) {
      if (e.curve != Curve::none) activate_row(e.curve, values + r * kFinishColumns, cols);
      cast_row(e, values + r * kFinishColumns, i0 + r0 + r, j0, cols);
    }
  }
}

// How many columns were finished four vectors at a time.
template <class T>
inline idx finish_quads(const Epilogue& e, const int32_t* sums, idx stride, idx i0, idx rows, idx j0, idx cols) {
  idx c = 0;
  if constexpr (Lanes::kFma && sizeof(T) == 1) {
    if (e.m_row || e.bias_row) return 0;
    constexpr int32_t kLeast = T(-1) < T(0) ? -128 : 0;
    const bool residual = e.residual_type != Residual::none, low = e.low > kLeast;
    const auto run = residual ? low ? code_quads<T, true, true> : code_quads<T, true, false>
                     : low    ? code_quads<T, false, true>
                              : code_quads<T, false, false>;
    for (; c + 4 * Lanes::kWidth <= cols; c += 4 * Lanes::kWidth) run(e, sums + c, stride, i0, rows, j0 + c);
  }
  return c;
}

template <class T>
inline void finish_codes(const Epilogue& e, const int32_t* sums, idx stride, idx i0, idx rows, idx j0, idx cols) {
  if (e.rounding == kHalfEven) {
    const idx quads = finish_quads<T>(e, sums, stride, i0, rows, j0, cols);
    sums += quads, j0 += quads, cols -= quads;
    for_vectors(
        cols, [&](auto at, idx c, idx n) QK_INLINE { code_columns<T>(e, at, sums + c, stride, i0, rows, j0 + c, n); });
    return;
  }
  for (idx r = 0; r < rows; ++r, sums += stride) {
    const idx i = i0 + r, first = i * e.m_row + j0;
    Requantizer by = {};
    by.rounding = e.rounding, by.left = e.left, by.low = e.low, by.high = e.high;
    if (e.m64) by.m64 = e.m64 + first;
    if (e.q) by.q = e.q + first, by.e = e.e + first;
    if (e.bias) by.bias = e.bias + i * e.bias_row + j0;
    if (e.zeros) by.zero = e.zeros + j0;
    requantize_row<false>(sums, cols, by, out_row<T>(e, i, j0));
  }
}

inline void finish_sums(const Epilogue& e, const int32_t* sums, idx stride, idx i0, idx rows, idx j0, idx cols) {
  for (idx r = 0; r < rows; ++r, sums += stride) {
    int32_t* const to = out_row<int32_t>(e, i0 + r, j0);
    if (!e.bias) {
      memcpy(to, sums, size_t(cols) * 4);
      continue;
    }
    const int32_t* const bias = e.bias + (i0 + r) * e.bias_row + j0;
    for (idx c = 0; c < cols; ++c) to[c] = add_wrapped(sums[c], bias[c]);
  }
}

[[maybe_unused]] __attribute__((noinline)) void finish_rows(const Epilogue& e, const int32_t* sums, idx stride, idx i0,
                                                            idx rows, idx j0, idx cols) {
  switch (e.type) {
    case Written::s32:
      return finish_sums(e, sums, stride, i0, rows, j0, cols);
    case Written::s8:
      return finish_codes<int8_t>(e, sums, stride, i0, rows, j0, cols);
    case Written::u8:
      return finish_codes<uint8_t>(e, sums, stride, i0, rows, j0, cols);
    case Written::s16:
      return finish_codes<int16_t>(e, sums, stride, i0, rows, j0, cols);
    case Written::u16:
      return finish_codes<uint16_t>(e, sums, stride, i0, rows, j0, cols);
    default:
      return finish_real(e, sums, stride, i0, rows, j0, cols);
  }
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
