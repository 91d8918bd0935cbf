// Weights of 4 and 2 bits in the caller's memory: [n16k4x2 or x4 panels][scales][sums][zeros], layouts of docs/layouts.md.
#pragma once
#include "../cpu/int4.h"
#include "call.h"

namespace qk::capi {

// All that belongs to the weights.
int32_t read_groups(const qk_packed_groups* given, Int4& g, int32_t& bits, const Say& say);

// That of the columns from j, a multiple of 16.
Int4 groups_of_columns(Int4 g, idx j);

}  // namespace qk::capi
