// Packed weights in the caller's memory: [n16k4 panels, 64-byte aligned][column sums].
#pragma once
#include "../cpu/conv.h"
#include "call.h"

namespace qk::capi {

struct Weights {
  const uint8_t* data;
  const int32_t* sums;
  idx k, n;
  bool is_signed;
};

struct ConvWeights {
  const uint8_t* data;
  const int32_t* sums;
  idx matrices;
  bool is_signed, depthwise;
};

int32_t read_packed(const qk_packed* given, Weights& w, const Say& say);
// … that fit the shape and the filters' zero points (NULL: zero), which lie between merged groups.
int32_t read_packed_conv(const qk_packed_conv* given, const ConvShape& shape, ConvWeights& w, const Say& say);

}  // namespace qk::capi
