// The nouns of products with packed weights of 4 and 8 bits: layout n64k64 (docs/layouts.md).
#pragma once
#include "calls.h"

namespace qk::cuda {

// Codes are unsigned: signed ones have 8 (128) added, and so have their zero points.
struct Weights {
  int64_t n, k;
  int32_t bits;          // 4 or 8
  const uint8_t* codes;  // [⌈n/64⌉][⌈k/64⌉][4 panels][bits/4][32 lanes][16 bytes]
  // of a group of k, [⌈n/64⌉][groups][8][4 panels][2]: lane g's columns g and g + 8 of every panel lie side by side
  const void* scales;
  Output scale_type;       // kF32, kF16, kBf16
  const uint8_t* zeros;    // null: `zero` for all
  const uint8_t* factors;  // two-level scales, 1 … 16: sums of integers; null: none
  int32_t zero;
  int64_t group, groups;  // k of a group, a multiple of 32

  int64_t chunks() const { return ceil_to(k, 64); }
  int64_t blocks() const { return ceil_to(n, 64); }
};

// out = epilogue(Σ_k x[i, k] · scale · (w[k, j] − zero)): real activations (A11), or codes of them (A10).
struct WeightProduct {
  const void* x;       // rows with k adjacent, 16-byte aligned
  Output x_type;       // kF32, kF16, kBf16; kS8, kU8
  int64_t m, x_pitch;  // in bytes, a multiple of 16
  Weights w;
  const int32_t*
      offsets;  // of experts: rows offsets[e] … offsets[e + 1] − 1 of x meet weight e. Null: one weight for all
  int64_t experts;
  int splits;    // of k
  float* parts;  // above one: [splits][m][n], what they sum up to
  Epilogue epilogue;
};

}  // namespace qk::cuda
