// From sums that are floats already to the result: the row's scale, bias, residual, activation, the output's type (A6, A10).
#pragma once
#include "epilogue.h"
#include "weights.h"

namespace qk::cuda {

QK_DEVICE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The rules' order, from the sum on: f32(y·sa), + bias, + residual, activation.
QK_DEVICE float finished(const Epilogue& e, int64_t i, int64_t j, float y) {
  if (e.a_scale) y = y * ptx::load(e.a_scale + i * e.a_scale_step);
  if (e.float_bias) y = y + ptx::load(e.float_bias + j);
  if (e.residual) y = y + residual_at(e, i * e.n + j);
  if (e.curve) return curved(e.curve, y);
  return e.clamps ? clamp_float(y, e.clamp_low, e.clamp_high) : y;
}

// Up to four adjacent columns of a row; all four in one access where that is aligned.
QK_DEVICE void finish_floats(const Epilogue& e, int64_t i, int64_t j, const float (&sums)[4]) {
  const int64_t at = i * e.out_row + j;
  float y[4];
  QK_UNROLL
  for (int v = 0; v < 4; ++v) y[v] = j + v < e.n ? finished(e, i, j + v, sums[v]) : 0.0f;
  const bool whole = j + 4 <= e.n && aligned16(e.out) && e.out_row % 4 == 0;
  if (e.output == kF32) {
    if (whole) {
      Words4 words;
      memcpy(&words, y, 16);
      return ptx::store(reinterpret_cast<Words4*>(static_cast<float*>(e.out) + at), words);
    }
    QK_UNROLL
    for (int v = 0; v < 4; ++v)
      if (j + v < e.n) ptx::store(static_cast<float*>(e.out) + at + v, y[v]);
    return;
  }
  uint32_t halves[4];
  QK_UNROLL
  for (int v = 0; v < 4; ++v) halves[v] = e.output == kF16 ? float_to_half(y[v]) : float_to_bfloat(y[v]);
  auto* to = static_cast<uint16_t*>(e.out) + at;
  if (whole)
    return ptx::store(reinterpret_cast<Words2*>(to),
                      Words2{{halves[0] | halves[1] << 16, halves[2] | halves[3] << 16}});
  QK_UNROLL
  for (int v = 0; v < 4; ++v)
    if (j + v < e.n) ptx::store(to + v, uint16_t(halves[v]));
}

// What a product's CTA has: the result, or its part of k on the way there.
QK_DEVICE void deliver(const WeightProduct& p, const Epilogue& e, int split, int64_t i, int64_t j,
                       const float (&sums)[4]) {
  if (i >= e.m || j >= p.w.n) return;
  if (p.splits == 1) return finish_floats(e, i, j, sums);
  float* to = p.parts + (split * p.m + i) * p.w.n + j;
  if (p.w.n % 4 == 0) {
    Words4 words;
    memcpy(&words, sums, 16);
    return ptx::store(reinterpret_cast<Words4*>(to), words);
  }
  QK_UNROLL
  for (int v = 0; v < 4; ++v)
    if (j + v < p.w.n) ptx::store(to + v, sums[v]);
}

}  // namespace qk::cuda
