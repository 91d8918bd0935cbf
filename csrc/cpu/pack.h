// Plain weights (k, n), any strides → layout n16k4, for every ISA (baseline code: SSE2, NEON or plain).
#pragma once
#include "../kernel.h"

namespace qk {

struct PlainWeights {
  const uint8_t* data;
  idx k, n;
  idx row, col;  // strides
  bool is_signed;
};

// Panels [panels.begin, panels.end) of w into dst, k padded to k_step; sums: of every column of those panels, unless
// null. dst and sums are those of panel 0.
void pack_panels(const PlainWeights& w, idx k_step, Range panels, uint8_t* dst, int32_t* sums);

// Are all signed weights in −64 … 64, all unsigned ones up to 128 (narrow.h)?
bool are_narrow(const uint8_t* weights, idx count, bool is_signed);

}  // namespace qk
