// The nouns of the elementwise ops: plain structs, no std, as kernel.h. Every ISA file may include it.
#pragma once
#include "arithmetic.h"
#include "kernel.h"

namespace qk {

// Real numbers that C++ has no type for.
struct Half {  // f16
  uint16_t bits;
};
struct Bfloat {  // bf16
  uint16_t bits;
};

// Which scale an element has: qkernels/kernel.py, Scales. Element i, j of (rows, inner) takes number
// (i / repeat) % rows, j / group of the (rows, columns) scales.
struct Placement {
  idx rows, columns, repeat, group;
};

// What accumulators become codes with (A5). Of a row of n columns every array has n values, or one where `one` is set.
struct Requantizer {
  Rounding rounding;
  bool one;
  const float* m;        // half_even
  const double* m64;     // half_away
  const int32_t *q, *e;  // gemmlowp, ruy, half_up: the multiplier is q·2^(e−31)
  const int32_t* bias;   // or null
  const int32_t* zero;   // or null
  int32_t low, high;     // codes, after every clamp
  bool left;             // some e > 0: such multipliers shift left and may saturate, which is left to arithmetic.h
};

// One call, checked and ready. Arrays are C contiguous, (rows, inner); which of the fields are used, the op says.
struct Elementwise {
  const void* in;
  void* out;
  idx rows, inner;
  Placement at;
  const float* scale;   // quantize, dequantize. softmax: 256 exponentials
  const int32_t* zero;  // or null
  Requantizer by;       // requantize: arrays of the placement's size
  int32_t low, high;    // codes
  float* found_scale;   // dynamic_quantize, one for each `at.group` elements of a row
  int32_t *found_zero, *sums;
  const void* other;                 // add, mul: the second operand, of the first's type
  float a_factor, b_factor, offset;  // add: its two ratios and the offset. mul: m, unused, the result's zero point.
                                     // softmax: a_factor one over the result's scale, a_zero its zero point
  int32_t a_zero, b_zero;            // mul
  const uint8_t* table;              // lookup: 256 entries
  bool fresh;                        // out is memory that the system has yet to hand out, page by page
  bool stream;                       // the output is larger than the caches: written past them
};

// The range of some elements, non-finite ones left out (A8). amax: −low = high = max |x|.
struct Extent {
  float low, high;
  bool special;  // there are some
};

// One line of the registry.
struct ElementwiseRow {
  const char* op;
  const char* types;  // in, out
  const char* isa;
  int in_bytes, out_bytes;  // of an element
  double ns;                // nominal cost of an element where the caches hold it
  // Computes out[rows, columns] on the calling thread; columns.begin is a multiple of the group where groups have a
  // scale of their own. Nothing else is written, nothing is allocated.
  void (*block)(const Elementwise&, Range rows, Range columns);
  // dynamic_quantize of one range that several threads share: its extent, and then the codes of elements begin … end
  // (their sum is returned). Else null.
  Extent (*extent)(const Elementwise&, Range elements);
  int32_t (*codes)(const Elementwise&, Range elements, Extent);
  bool whole_rows = false;  // columns are not divided
};

struct ElementwiseList {
  const ElementwiseRow* rows;
  int count;
};

}  // namespace qk
