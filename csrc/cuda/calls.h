// The nouns of the GPU side: one product and what becomes of its sums. Plain structs that travel to the device as they are.
#pragma once
#include <stdint.h>

namespace qk::cuda {

using Stream = void*;  // a cudaStream_t

// kPartial: added to int32, a part of k.
enum Output : int32_t { kS32, kF32, kF16, kBf16, kS8, kU8, kS16, kU16, kPartial };

// What becomes of the sums acc[i, j] of batch b; docs/arithmetic.md A2, A5, A6. Null pointers: the term is absent.
struct Epilogue {
  int64_t m, n, k;
  Output output;
  void* out;  // out[b·out_batch + i·out_row + j]
  int64_t out_batch, out_row;
  // −a_zero·w_sums − w_zero·(a_sums − k·a_zero) + bias; a's of [b·m + i], w's of [b·column_batch + j]
  const int32_t *a_zero, *a_sums, *w_zero, *w_sums, *bias;
  int64_t column_batch;  // n, or 0: one weight for all
  int64_t bias_row;      // n, or 0: one row of them for all
  // float outputs, and codes by half_even without m_values: scales of [(b·m + i)·a_scale_step] and
  // [(b·column_batch + j)·w_scale_step]
  const float *a_scale, *w_scale, *float_bias;
  int64_t a_scale_step, w_scale_step;  // 0: one for all
  bool clamps;
  float clamp_low, clamp_high;
  int32_t curve;  // of float outputs, in the order of qkernels/activations.py's CURVES, from 1; 0: none
  // codes: multipliers of [(b·m + i)·m_row + j·m_column]: float of half_even, double of half_away, else q and e
  int32_t rounding;
  const void* m_values;
  const int32_t* e_values;
  int64_t m_row, m_column;
  float y_scale;
  int32_t y_zero, low, high;
  // residual (b, m, n), adjacent; of codes its zero point and scale (of codes for codes: the scale over y_scale)
  const void* residual;
  Output residual_type;
  float residual_scale;
  int32_t residual_zero;
  const float* found_scale;  // of the residual, where only the device knows it (not over y_scale); else null
  const int32_t* found_zero;
};

// acc = Σ_k a[i, k] · w[j, k], both with k adjacent, 16-byte aligned, pitches multiples of 16. The bytes between k and
// the pitch are never used. Batches of a product are products of their own with these strides.
struct Gemm {
  int64_t batches, m, n, k;
  const uint8_t* a;
  int64_t a_pitch, a_batch;
  const uint8_t* w;
  int64_t w_pitch, w_batch;
  bool a_signed, w_signed;
  int splits;  // of k; above 1 the output is kPartial
};

// An operand on its way to where products read it: k adjacent, zeros behind k.
struct RearrangeArgs {
  const uint8_t* from;  // from[b·batch + row·row_step + k·k_step]
  int64_t batch_step, row_step, k_step;
  int64_t batches, rows, k;
  uint8_t* to;  // (batches, rows, pitch)
  int64_t pitch;
};

// Σ_k of every row.
struct SumsArgs {
  const uint8_t* from;  // rows with k adjacent, 16-byte aligned, zeros or anything behind k
  int64_t rows, k, pitch;
  bool is_signed;
  int32_t* sums;
};

// Where an element's scale is: that of row i, column j is value[(i / repeat) % rows · columns + j / group], as in
// qkernels/kernel.py. Arrays are (rows, inner), adjacent.
struct Placement {
  int64_t rows, columns, repeat, group;
};

struct QuantizeArgs {  // A7: codes of floats
  const void* x;
  Output x_type;  // kF32, kF16, kBf16
  int64_t rows, inner;
  const float* scale;
  const int32_t* zero;      // or null
  const float* reciprocal;  // A8: codes of x · reciprocal, ±high; null: of x / scale
  Placement place;
  int32_t low, high;
  void* out;
  int32_t out_bits;  // of a code: 16, 8; 4 or 2 where no row ends inside of a byte
};

struct DequantizeArgs {  // A9: floats of codes
  const void* codes;
  int32_t code_bits;  // as above
  bool is_signed;
  int64_t rows, inner;
  const float* scale;
  const int32_t* zero;
  Placement place;
  void* out;
  Output out_type;
};

struct RequantizeArgs {  // A5: codes of sums
  const int32_t* acc;
  int64_t rows, inner;
  int32_t rounding;
  const void* m_values;
  const int32_t *e_values, *bias, *zero;
  Placement place;
  int32_t low, high;
  void* out;
  int32_t out_bits;  // 16 or 8
};

struct DynamicArgs {  // A8: scale, zero point and codes of every `group` elements of a row; Σ of its codes
  const void* x;
  Output x_type;
  int64_t rows, inner, group;
  int32_t low, high;  // low < 0: symmetric, with ±high
  float* scale;
  int32_t *zero, *sums;  // or null
  void* out;
  int64_t out_pitch;  // of a row of codes, in bytes; what lies behind inner becomes 0
  int32_t out_bits;   // 8; 4 where no group ends inside of a byte, but for the row's last
};

struct ExtremesArgs {  // A7, A8: the finite elements' greatest magnitudes above and below 0, of each place
  const void* x;
  Output x_type;
  int64_t rows, inner;
  Placement place;
  uint32_t* ends;  // (places, 2), as bits, which are ordered as the numbers are; cleared by the call
};

struct FoundArgs {  // A7, A8: scales and zero points of ranges
  const uint32_t* ends;
  int64_t places;
  int32_t low, high, middle;  // codes; middle: of 0 where it is symmetric
  bool is_symmetric;
  Output scale_type;          // kF32, kF16, kBf16: what the scale is rounded to before it is used
  float *scale, *reciprocal;  // the latter or null
  int32_t* zero;              // or null
  uint8_t* factors;           // of two-level scales (A10), or null
  int64_t groups, step;       // of those: how many places share a common scale, and how far apart they are
};

// What an epilogue takes of scales that only the device knows, of [i·n + j]: A4's multipliers, A6's bias in their unit.
struct PrepareArgs {
  int64_t rows, n;  // rows: 1, or m
  const float *a_scale, *w_scale;
  int64_t a_scale_step, w_scale_step;
  const float* float_bias;
  int32_t* bias;  // or null
  int32_t rounding;
  bool single;  // A4: `ruy` with one weight scale
  float y_scale;
  void* m_values;  // or null; as of Epilogue
  int32_t* e_values;
};

// Codes of 4 and 2 bits (A1), packed along rows: `packed` (rows, ⌈inner·bits/8⌉); one a byte: `codes` (rows, inner).
struct PackArgs {
  void *codes, *packed;
  int64_t rows, inner;
  int32_t bits;
  bool is_signed, unpacks;
};

struct FiniteArgs {  // Where is the first element that is no finite number?
  const void* x;
  Output x_type;
  int64_t count;
  uint32_t* found;  // cleared by the call; ~(its index / 16), or 0
};

struct WidenArgs {  // sums in 64 bits, of parts of k
  const int32_t* sums;
  int64_t count;
  bool adds;  // to what is there
  int64_t* out;
};

inline int64_t ceil_to(int64_t size, int64_t step) { return (size + step - 1) / step; }

}  // namespace qk::cuda
