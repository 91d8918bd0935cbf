// The noun of the pools (A16): plain structs, no std, as kernel.h. Every ISA file may include it.
#pragma once
#include "kernel.h"

namespace qk {

// Images of codes → images; axes are (image, row, column, channel), steps in bytes.
struct Pool {
  const uint8_t* x;
  idx x_step[4];
  void* out;
  idx out_step[4];
  idx images, size[2], out_size[2], channels;
  idx kernel[2], stride[2], before[2], dilation[2];
  float scale, out_scale;  // avg_pool
  int32_t zero, out_zero;
  bool count_pads;  // taps outside of the image count, as 0
};

// One line of the registry.
struct PoolRow {
  const char* op;     // max_pool, avg_pool, channel_sum: int32 sums of an image's channels, its window the image
  const char* types;  // in, out
  const char* isa;
  double ns;  // nominal cost of a tap
  // Rows `lines` of the output, counted through all images, on the calling thread. Nothing is allocated.
  void (*block)(const Pool&, Range lines);
};

struct PoolList {
  const PoolRow* rows;
  int count;
};

}  // namespace qk
