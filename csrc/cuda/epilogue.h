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
#include "curves.h"
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

// ---------------------------------------------------------------- A1: half precision
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

QK_DEVICE float bfloat_to_float(uint16_t bits16) {
  const uint32_t bits = uint32_t(bits16) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// ---------------------------------------------------------------- one element, whatever is asked of it
QK_DEVICE int32_t corrected(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t sum) {
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j;
  auto acc = uint32_t(sum);
  const uint32_t a_zero = e.a_zero ? uint32_t(ptx::load(e.a_zero + row)) : 0u;
  if (e.a_zero) acc -= a_zero * uint32_t(ptx::load(e.w_sums + column));
  if (e.w_zero)
    acc -= (uint32_t(ptx::load(e.a_sums + row)) - uint32_t(e.k) * a_zero) * uint32_t(ptx::load(e.w_zero + column));
  if (e.bias) acc += uint32_t(ptx::load(e.bias + row * e.bias_row + j));
  return int32_t(acc);
}

QK_DEVICE int32_t residual_zero(const Epilogue& e) { return e.found_zero ? ptx::load(e.found_zero) : e.residual_zero; }

QK_DEVICE float residual_scale(const Epilogue& e) {  // A6: of codes that join codes, over y_scale
  if (!e.found_scale) return e.residual_scale;
  const float scale = ptx::load(e.found_scale);
  return e.output >= kS8 ? scale / e.y_scale : scale;
}

QK_DEVICE float residual_at(const Epilogue& e, int64_t at) {
  int32_t code;
  switch (e.residual_type) {
    case kF32:
      return ptx::load(static_cast<const float*>(e.residual) + at);
    case kF16:
      return half_to_float(ptx::load(static_cast<const uint16_t*>(e.residual) + at));
    case kBf16:
      return bfloat_to_float(ptx::load(static_cast<const uint16_t*>(e.residual) + at));
    case kS8:
      code = ptx::load(static_cast<const int8_t*>(e.residual) + at);
      break;
    default:
      code = ptx::load(static_cast<const uint8_t*>(e.residual) + at);
  }
  return float(code - residual_zero(e)) * residual_scale(e);
}

QK_DEVICE float to_float(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t acc) {  // A6
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j;
  const float c = ptx::load(e.a_scale + row * e.a_scale_step) * ptx::load(e.w_scale + column * e.w_scale_step);
  float y = float(acc) * c;
  if (e.float_bias) y = y + ptx::load(e.float_bias + j);
  if (e.residual) y = y + residual_at(e, row * e.n + j);
  if (e.curve) return curved(e.curve, y);
  return e.clamps ? clamp_float(y, e.clamp_low, e.clamp_high) : y;
}

QK_DEVICE int32_t to_code(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t acc) {  // A5, A6
  const int32_t low = e.low - e.y_zero, high = e.high - e.y_zero;
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j, at = row * e.m_row + j * e.m_column;
  if (e.rounding == kHalfEven) {
    const float m = e.m_values ? ptx::load(static_cast<const float*>(e.m_values) + at)
                               : multiplier(ptx::load(e.a_scale + row * e.a_scale_step),
                                            ptx::load(e.w_scale + column * e.w_scale_step), e.y_scale);
    if (!e.residual) return round_half_even(acc, m, low, high) + e.y_zero;
    const float t = float(acc) * m, u = residual_at(e, row * e.n + j);
    return near_even(clamp_or_low(t + u, float(low), float(high))) + e.y_zero;
  }
  if (e.rounding == kHalfAway)
    return round_half_away(acc, ptx::load(static_cast<const double*>(e.m_values) + at), low, high) + e.y_zero;
  const Fixed m = {ptx::load(static_cast<const int32_t*>(e.m_values) + at), ptx::load(e.e_values + at)};
  if (e.rounding == kGemmlowp) return round_gemmlowp(acc, m, low, high) + e.y_zero;
  if (e.rounding == kRuy) return round_ruy(acc, m, low, high) + e.y_zero;
  return round_half_up(acc, m, low, high) + e.y_zero;
}

QK_DEVICE void finish_one(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t sum) {
  const int64_t at = batch * e.out_batch + i * e.out_row + j;
  if (e.output == kPartial) return ptx::red_add(static_cast<int32_t*>(e.out) + at, sum);
  const int32_t acc = corrected(e, batch, i, j, sum);
  if (e.output == kS32) return ptx::store(static_cast<int32_t*>(e.out) + at, acc);
  if (e.output >= kS16) return ptx::store(static_cast<uint16_t*>(e.out) + at, uint16_t(to_code(e, batch, i, j, acc)));
  if (e.output >= kS8) return ptx::store(static_cast<uint8_t*>(e.out) + at, uint8_t(to_code(e, batch, i, j, acc)));
  const float y = to_float(e, batch, i, j, acc);
  if (e.output == kF32) return ptx::store(static_cast<float*>(e.out) + at, y);
  ptx::store(static_cast<uint16_t*>(e.out) + at, e.output == kF16 ? float_to_half(y) : float_to_bfloat(y));
}

// ---------------------------------------------------------------- kV adjacent columns of a row, 16 bytes of output
// The usual wishes only, where every vector is aligned; the rest goes element by element, in a loop. Written out for
// every rounding and every edge this was 32 000 instructions in the largest kernel, of an instruction cache of 8 000.
// Residuals of codes in vectors: sm_90a's largest tile, which has 168 registers a thread, spills 16 bytes.
QK_HD int bytes_of(Output output) {
  return output >= kS16 ? 2 : output >= kS8 ? 1 : output == kF16 || output == kBf16 ? 2 : 4;
}

QK_DEVICE bool aligned16(const void* address) { return (reinterpret_cast<uintptr_t>(address) & 15) == 0; }

QK_DEVICE bool in_vectors(const Epilogue& e) {
  const int item = bytes_of(e.output);
  const bool out = aligned16(e.out) && e.out_row * item % 16 == 0 && e.out_batch * item % 16 == 0;
  const bool columns = aligned16(e.w_sums) && aligned16(e.w_zero) && aligned16(e.bias) && aligned16(e.w_scale) &&
                       aligned16(e.float_bias) && e.column_batch % 4 == 0 && e.bias_row % 4 == 0;
  const bool residual =
      !e.residual || (e.residual_type < kS8 && aligned16(e.residual) && e.n % 4 == 0 && e.output < kS8);
  const bool codes =
      e.output < kS8 ||
      (e.rounding == kHalfEven && (!e.m_values || (aligned16(e.m_values) && e.m_row % 4 == 0 && e.m_column == 1)));
  return e.output != kPartial && out && columns && residual && codes;
}

template <class T>
QK_DEVICE void columns4(const T* from, T (&to)[4]) {
  static_assert(sizeof(T) == 4, "a word each");
  const Words4 words = ptx::load(reinterpret_cast<const Words4*>(from));
  memcpy(to, &words, 16);
}

QK_DEVICE void residual4(const Epilogue& e, int64_t at, float (&to)[4]) {
  if (e.residual_type == kF32) return columns4(static_cast<const float*>(e.residual) + at, to);
  const Words2 words = ptx::load(reinterpret_cast<const Words2*>(static_cast<const uint16_t*>(e.residual) + at));
  uint16_t halves[4];
  memcpy(halves, &words, 8);
  QK_UNROLL
  for (int u = 0; u < 4; ++u) to[u] = e.residual_type == kF16 ? half_to_float(halves[u]) : bfloat_to_float(halves[u]);
}

template <int kV>
QK_DEVICE void correct(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[kV]) {
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j;
  const uint32_t a_zero = e.a_zero ? uint32_t(ptx::load(e.a_zero + row)) : 0u;
  const uint32_t a_sum = e.w_zero ? uint32_t(ptx::load(e.a_sums + row)) - uint32_t(e.k) * a_zero : 0u;
  QK_UNROLL
  for (int v = 0; v < kV; v += 4) {
    int32_t words[4];
    if (e.a_zero) {
      columns4(e.w_sums + column + v, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = int32_t(uint32_t(acc[v + u]) - a_zero * uint32_t(words[u]));
    }
    if (e.w_zero) {
      columns4(e.w_zero + column + v, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = int32_t(uint32_t(acc[v + u]) - a_sum * uint32_t(words[u]));
    }
    if (e.bias) {
      columns4(e.bias + row * e.bias_row + j + v, words);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) acc[v + u] = add_wrapped(acc[v + u], words[u]);
    }
  }
}

// f32(sa·sw) of each column; over y_scale, the multiplier of A4.
QK_DEVICE void scales4(const Epilogue& e, float a_scale, int64_t column, float (&c)[4]) {
  if (e.w_scale_step) {
    columns4(e.w_scale + column, c);
  } else {
    c[0] = c[1] = c[2] = c[3] = ptx::load(e.w_scale);
  }
  QK_UNROLL
  for (int u = 0; u < 4; ++u) c[u] = a_scale * c[u];
}

QK_DEVICE float a_scale_of(const Epilogue& e, int64_t row) {
  return e.a_scale ? ptx::load(e.a_scale + row * e.a_scale_step) : 0.0f;
}

// One curve's code for all of them, which stay in registers: written out for each it was half as much again of the kernel.
template <int kV>
QK_DEVICE void curve_all(int32_t curve, float (&y)[kV]) {
  QK_NO_UNROLL
  for (int v = 0; v < kV; ++v) {
    float one = y[0];
    QK_UNROLL
    for (int u = 1; u < kV; ++u) one = u == v ? y[u] : one;
    one = curved(curve, one);
    QK_UNROLL
    for (int u = 0; u < kV; ++u) y[u] = u == v ? one : y[u];
  }
}

template <int kV>
QK_DEVICE void to_floats(const Epilogue& e, int64_t batch, int64_t i, int64_t j, const int32_t (&acc)[kV],
                         float (&y)[kV]) {
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j;
  const float a_scale = a_scale_of(e, row);
  QK_UNROLL
  for (int v = 0; v < kV; v += 4) {
    float c[4], more[4];
    scales4(e, a_scale, column + v, c);
    QK_UNROLL
    for (int u = 0; u < 4; ++u) y[v + u] = float(acc[v + u]) * c[u];
    if (e.float_bias) {
      columns4(e.float_bias + j + v, more);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) y[v + u] = y[v + u] + more[u];
    }
    if (e.residual) {
      residual4(e, row * e.n + j + v, more);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) y[v + u] = y[v + u] + more[u];
    }
    if (e.clamps) {
      QK_UNROLL
      for (int u = 0; u < 4; ++u) y[v + u] = clamp_float(y[v + u], e.clamp_low, e.clamp_high);
    }
  }
  if (e.curve) curve_all(e.curve, y);
}

template <class T, int kV>
QK_DEVICE void store_vector(const Epilogue& e, int64_t at, const T (&values)[kV]) {
  static_assert(sizeof(values) == 16, "one access");
  Words4 words;
  memcpy(&words, values, 16);
  ptx::store(reinterpret_cast<Words4*>(static_cast<T*>(e.out) + at), words);
}

// Codes by half_even, whose type T says.
template <class T, int kV>
QK_DEVICE void finish_codes(const Epilogue& e, int64_t batch, int64_t i, int64_t j, const int32_t (&acc)[kV]) {
  const int64_t row = batch * e.m + i, column = batch * e.column_batch + j;
  const float a_scale = a_scale_of(e, row);
  const int32_t low = e.low - e.y_zero, high = e.high - e.y_zero;
  T codes[kV];
  QK_UNROLL
  for (int v = 0; v < kV; v += 4) {
    float m[4];
    if (e.m_values) {
      columns4(static_cast<const float*>(e.m_values) + row * e.m_row + j + v, m);
    } else {
      scales4(e, a_scale, column + v, m);
      QK_UNROLL
      for (int u = 0; u < 4; ++u) m[u] = m[u] / e.y_scale;
    }
    QK_UNROLL
    for (int u = 0; u < 4; ++u) codes[v + u] = T(round_half_even(acc[v + u], m[u], low, high) + e.y_zero);
  }
  store_vector(e, batch * e.out_batch + i * e.out_row + j, codes);
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[4]) {
  const int64_t at = batch * e.out_batch + i * e.out_row + j;
  correct(e, batch, i, j, acc);
  if (e.output == kS32) return store_vector(e, at, acc);
  float y[4];
  to_floats(e, batch, i, j, acc, y);
  store_vector(e, at, y);
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[8]) {
  correct(e, batch, i, j, acc);
  if (e.output >= kS16) return finish_codes<uint16_t>(e, batch, i, j, acc);
  float y[8];
  to_floats(e, batch, i, j, acc, y);
  uint16_t halves[8];
  QK_UNROLL
  for (int v = 0; v < 8; ++v) halves[v] = e.output == kF16 ? float_to_half(y[v]) : float_to_bfloat(y[v]);
  store_vector(e, batch * e.out_batch + i * e.out_row + j, halves);
}

QK_DEVICE void finish(const Epilogue& e, int64_t batch, int64_t i, int64_t j, int32_t (&acc)[16]) {
  correct(e, batch, i, j, acc);
  finish_codes<uint8_t>(e, batch, i, j, acc);
}

// ---------------------------------------------------------------- 16 rows × kColumns of a warp
// kSwapped: the tile's rows are columns of the result (weights were the instruction's A operand).
template <int kV, int kColumns, bool kSwapped>
QK_DEVICE void store_staged(const Epilogue& e, int batch, Staging<kColumns> staging, int64_t row, int64_t column,
                            bool vectors, int64_t end) {
  constexpr int kAcross = (kSwapped ? 16 : kColumns) / kV, kDown = kSwapped ? kColumns : 16;
  QK_NO_UNROLL
  for (int at = ptx::thread() & 31; at < kAcross * kDown; at += 32) {
    const int down = at / kAcross, across = at % kAcross * kV;
    const int64_t i = (kSwapped ? column : row) + down, j = (kSwapped ? row : column) + across;
    if (i >= e.m || j >= end) continue;
    if (vectors && j + kV <= end) {
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
    } else {
      QK_NO_UNROLL
      for (int v = 0; v < kV && j + v < end; ++v)
        finish_one(e, batch, i, j + v,
                   ptx::load_shared<int32_t>(kSwapped ? staging.at(across + v, down) : staging.at(down, across + v)));
    }
  }
}

// Every lane of the warp calls it, after its put()s; the staging is free again when it returns. Columns of the result from
// `end` on are somebody else's: groups of a convolution lie side by side.
template <int kColumns, bool kSwapped = false>
QK_DEVICE void store_tile(const Epilogue& e, int batch, Staging<kColumns> staging, int64_t row, int64_t column,
                          int64_t end) {
  ptx::warp_sync();
  const bool vectors = in_vectors(e) && (kSwapped ? row : column) % 16 == 0;
  const int item = bytes_of(e.output);
  if (item == 1) store_staged<16, kColumns, kSwapped>(e, batch, staging, row, column, vectors, end);
  else if (item == 2) store_staged<8, kColumns, kSwapped>(e, batch, staging, row, column, vectors, end);
  else store_staged<4, kColumns, kSwapped>(e, batch, staging, row, column, vectors, end);
  ptx::warp_sync();
}
template <int kColumns, bool kSwapped = false>
QK_DEVICE void store_tile(const Epilogue& e, int batch, Staging<kColumns> staging, int64_t row, int64_t column) {
  store_tile<kColumns, kSwapped>(e, batch, staging, row, column, e.n);
}

}  // namespace qk::cuda
