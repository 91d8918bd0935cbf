// From a tile of sums to the result: zero points, bias, scales, residual, clamp, the rounding by name, the output's type.
//
// A warp brings its sums 16 rows at a time through shared memory (`Staging`), so that a lane holds 4, 8 or 16 adjacent
// columns of one row, 16 bytes of output, whatever fragments the product instruction has. The rules are arithmetic.h's.
//
// Why not straight from the fragments: a lane holds two adjacent columns there, so that int8 outputs would be written
// in pieces of 2 bytes, and each row's and column's scale would be read by four times as many instructions.
#pragma once
#include "../arithmetic.h"
#include "calls.h"
#include "ptx.h"

namespace qk::cuda {

// ---------------------------------------------------------------- 16 rows of sums in shared memory, one warp's own
// Chunks of 4 columns are exchanged by row, so that neither fragments (8 lanes × 4 rows of 8 bytes) nor rows collide.
template <int kColumns>
struct Staging {
  static constexpr int kBytes = 16 * kColumns * 4;
  static_assert(kColumns % 32 == 0 || kColumns == 16, "whole chunks to exchange");
  uint32_t base;

  QK_DEVICE uint32_t at(int row, int column) const {
    const int mixed = ((row & 3) << 1 | (row >> 2 & 1)) & (kColumns / 4 - 1);
    return base + row * (kColumns * 4) + (((column >> 2) ^ mixed) << 4 | (column & 3) << 2);
  }
  // What lane 4g + q has of an m16n8 fragment: columns 2q, 2q + 1 of rows g and g + 8.
  QK_DEVICE void put(int column, const int32_t* d) const {
    const int lane = ptx::thread() & 31, g = lane >> 2, q = lane & 3;
    ptx::store_shared(at(g, column + 2 * q), Words2{{uint32_t(d[0]), uint32_t(d[1])}});
    ptx::store_shared(at(g + 8, column + 2 * q), Words2{{uint32_t(d[2]), uint32_t(d[3])}});
  }
};

// ---------------------------------------------------------------- four columns of a vector
template <class T>
QK_DEVICE void columns4(const T* from, int64_t j, int64_t n, T (&to)[4]) {
  static_assert(sizeof(T) == 4, "a word each");
  if (j + 4 <= n && (reinterpret_cast<uintptr_t>(from + j) & 15) == 0) {
    const Words4 words = ptx::load(reinterpret_cast<const Words4*>(from + j));
    memcpy(to, &words, 16);
  } else {
    QK_UNROLL
    for (int v = 0; v < 4; ++v) to[v] = j + v < n ? ptx::load(from + j + v) : T(0);
  }
}

// The terms of A2 that a kernel leaves out, mod 2³².
template <int kV>
QK_DEVICE void correct(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[kV]) {
  const int64_t row = batch * e.m + i, column = batch * e.column_batch;
  const uint32_t a_zero = e.a_zero ? uint32_t(ptx::load(e.a_zero + row)) : 0u;
  const uint32_t a_sum = e.w_zero ? uint32_t(ptx::load(e.a_sums + row)) - uint32_t(e.k) * a_zero : 0u;
  QK_UNROLL
  for (int v = 0; v < kV; v += 4) {
    int32_t words[4];
    if (e.a_zero) {
      columns4(e.w_sums + column, j + v, e.n, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = int32_t(uint32_t(acc[v + u]) - a_zero * uint32_t(words[u]));
    }
    if (e.w_zero) {
      columns4(e.w_zero + column, j + v, e.n, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = int32_t(uint32_t(acc[v + u]) - a_sum * uint32_t(words[u]));
    }
    if (e.bias) {
      columns4(e.bias + row * e.bias_row, j + v, e.n, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = add_wrapped(acc[v + u], words[u]);
    }
  }
}

// ---------------------------------------------------------------- A6: floats
QK_DEVICE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 0x3FFu;
  float x;
  uint32_t bits;
  if (exponent == 0) {
    x = float(fraction) * 5.9604644775390625e-8f;  // 2⁻²⁴: exact
    memcpy(&bits, &x, 4);
  } else {
    bits = exponent == 31 ? 0x7F800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
  }
  bits |= sign;
  memcpy(&x, &bits, 4);
  return x;
}

// Half to even. A NaN stays one (A1).
QK_DEVICE uint16_t float_to_half(float x) {
  uint32_t bits = bits_of(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return uint16_t(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return uint16_t(sign | 0x7C00u);  // 65520 and beyond round to ∞
  if (bits < 0x38800000u) {                                  // below 2⁻¹⁴: a multiple of 2⁻²⁴
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    return uint16_t(sign | uint32_t(near_even(magnitude * 16777216.0f)));
  }
  bits += 0xFFFu + (bits >> 13 & 1);
  return uint16_t(sign | ((bits - 0x38000000u) >> 13));
}

QK_DEVICE uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

QK_DEVICE float residual_at(const Epilogue& e, int64_t at) {
  switch (e.residual_type) {
    case kF32:
      return ptx::load(static_cast<const float*>(e.residual) + at);
    case kF16:
      return half_to_float(ptx::load(static_cast<const uint16_t*>(e.residual) + at));
    case kBf16: {
      const uint32_t bits = uint32_t(ptx::load(static_cast<const uint16_t*>(e.residual) + at)) << 16;
      float x;
      memcpy(&x, &bits, 4);
      return x;
    }
    case kS8:
      return float(int32_t(ptx::load(static_cast<const int8_t*>(e.residual) + at)) - e.residual_zero);
    default:
      return float(int32_t(ptx::load(static_cast<const uint8_t*>(e.residual) + at)) - e.residual_zero);
  }
}

template <int kV>
QK_DEVICE void to_floats(const Epilogue& e, int64_t batch, int64_t i, int64_t j, const int32_t (&acc)[kV],
                         float (&y)[kV]) {
  const float a_scale = ptx::load(e.a_scale + (batch * e.m + i) * e.a_scale_step);
  const float one_scale = e.w_scale_step ? 0.0f : ptx::load(e.w_scale);
  QK_UNROLL
  for (int v = 0; v < kV; v += 4) {
    float scale[4] = {one_scale, one_scale, one_scale, one_scale}, bias[4];
    if (e.w_scale_step) columns4(e.w_scale, j + v, e.n, scale);
    if (e.float_bias) columns4(e.float_bias, j + v, e.n, bias);
    QK_UNROLL
    for (int u = 0; u < 4; ++u) {
      const float c = a_scale * scale[u];
      float one = float(acc[v + u]) * c;
      if (e.float_bias) one = one + bias[u];
      if (e.residual && j + v + u < e.n) {
        const float r = residual_at(e, (batch * e.m + i) * e.n + j + v + u);
        one = one + (e.residual_type >= kS8 ? r * e.residual_scale : r);
      }
      y[v + u] = e.clamps ? clamp_float(one, e.clamp_low, e.clamp_high) : one;
    }
  }
}

// ---------------------------------------------------------------- A5, A6: codes
QK_DEVICE int32_t to_code(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t acc, float a_scale) {
  const int32_t low = e.low - e.y_zero, high = e.high - e.y_zero;
  if (e.rounding == kHalfEven) {
    const float m =
        e.m_values ? ptx::load(static_cast<const float*>(e.m_values) + (batch * e.m + i) * e.m_row + j * e.m_column)
                   : multiplier(a_scale, ptx::load(e.w_scale + j * e.w_scale_step), e.y_scale);
    if (!e.residual) return round_half_even(acc, m, low, high) + e.y_zero;
    const float u = residual_at(e, (batch * e.m + i) * e.n + j) * e.residual_scale;
    const float t = float(acc) * m;
    return near_even(clamp_or_low(t + u, float(low), float(high))) + e.y_zero;
  }
  const int64_t at = (batch * e.m + i) * e.m_row + j * e.m_column;
  if (e.rounding == kHalfAway)
    return round_half_away(acc, ptx::load(static_cast<const double*>(e.m_values) + at), low, high) + e.y_zero;
  const Fixed m = {ptx::load(static_cast<const int32_t*>(e.m_values) + at), ptx::load(e.e_values + at)};
  if (e.rounding == kGemmlowp) return round_gemmlowp(acc, m, low, high) + e.y_zero;
  if (e.rounding == kRuy) return round_ruy(acc, m, low, high) + e.y_zero;
  return round_half_up(acc, m, low, high) + e.y_zero;
}

// ---------------------------------------------------------------- kV adjacent columns of a row, 16 bytes of output
template <int kV, class T>
QK_DEVICE void store_row(T* to, const T (&values)[kV], int64_t left) {
  if (left >= kV && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    Words4 words;
    static_assert(sizeof(values) == 16, "one access");
    memcpy(&words, values, 16);
    ptx::store(reinterpret_cast<Words4*>(to), words);
  } else {
    QK_UNROLL
    for (int v = 0; v < kV; ++v)
      if (v < left) ptx::store(to + v, values[v]);
  }
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[4]) {
  const int64_t at = batch * e.out_batch + i * e.out_row + j;
  if (e.output == kPartial) {
    QK_UNROLL
    for (int v = 0; v < 4; ++v)
      if (j + v < e.n) ptx::red_add(static_cast<int32_t*>(e.out) + at + v, acc[v]);
    return;
  }
  correct(e, batch, i, j, acc);
  if (e.output == kS32) return store_row(static_cast<int32_t*>(e.out) + at, acc, e.n - j);
  float y[4];
  to_floats(e, batch, i, j, acc, y);
  store_row(static_cast<float*>(e.out) + at, y, e.n - j);
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[8]) {
  correct(e, batch, i, j, acc);
  float y[8];
  to_floats(e, batch, i, j, acc, y);
  uint16_t halves[8];
  QK_UNROLL
  for (int v = 0; v < 8; ++v) halves[v] = e.output == kF16 ? float_to_half(y[v]) : float_to_bfloat(y[v]);
  store_row(static_cast<uint16_t*>(e.out) + batch * e.out_batch + i * e.out_row + j, halves, e.n - j);
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[16]) {
  correct(e, batch, i, j, acc);
  const float a_scale = e.a_scale ? ptx::load(e.a_scale + (batch * e.m + i) * e.a_scale_step) : 0.0f;
  uint8_t codes[16];
  QK_UNROLL
  for (int v = 0; v < 16; ++v)
    codes[v] = j + v < e.n ? uint8_t(to_code(e, batch, i, j + v, acc[v], a_scale)) : uint8_t(0);
  store_row(static_cast<uint8_t*>(e.out) + batch * e.out_batch + i * e.out_row + j, codes, e.n - j);
}

// ---------------------------------------------------------------- 16 rows × kColumns of a warp
// kSwapped: the tile's rows are columns of the result (weights were the instruction's A operand).
template <int kV, int kColumns, bool kSwapped>
QK_DEVICE void store_staged(const Epilogue& e, int64_t batch, Staging<kColumns> staging, int64_t row, int64_t column) {
  constexpr int kAcross = (kSwapped ? 16 : kColumns) / kV, kDown = kSwapped ? kColumns : 16;
  QK_NO_UNROLL
  for (int at = ptx::thread() & 31; at < kAcross * kDown; at += 32) {
    const int down = at / kAcross, across = at % kAcross * kV;
    const int64_t i = (kSwapped ? column : row) + down, j = (kSwapped ? row : column) + across;
    if (i >= e.m || j >= e.n) continue;
    int32_t acc[kV];
    if constexpr (kSwapped) {
      QK_UNROLL
      for (int v = 0; v < kV; ++v) acc[v] = ptx::load_shared<int32_t>(staging.at(across + v, down));
    } else {
      QK_UNROLL
      for (int v = 0; v < kV; v += 4) {
        const Words4 words = ptx::load_shared<Words4>(staging.at(down, across + v));
        memcpy(acc + v, &words, 16);
      }
    }
    finish(e, batch, i, j, acc);
  }
}

// Every lane of the warp calls it, after its put()s; the staging is free again when it returns.
template <int kColumns, bool kSwapped = false>
QK_DEVICE void store_tile(const Epilogue& e, int64_t batch, Staging<kColumns> staging, int64_t row, int64_t column) {
  ptx::warp_sync();
  if (e.output == kS8 || e.output == kU8) store_staged<16, kColumns, kSwapped>(e, batch, staging, row, column);
  else if (e.output == kF16 || e.output == kBf16) store_staged<8, kColumns, kSwapped>(e, batch, staging, row, column);
  else store_staged<4, kColumns, kSwapped>(e, batch, staging, row, column);
  ptx::warp_sync();
}

}  // namespace qk::cuda
