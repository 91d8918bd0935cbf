// Four tiles of sums, 2×2, that leave their registers for adjacent rows of kPair numbers, and begin anew.
#pragma once
#include "amx.h"

// A register changes hands: what was summed before leaves, if it was (before: where to, or null).
#define QK_TURN_PAIR(tile, to)                     \
  do {                                             \
    if (before) _tile_stored(tile, to, kPair * 4); \
    _tile_zero(tile);                              \
  } while (0)

namespace qk {
namespace QK_ISA {
namespace {

template <bool Lower, class Sum>
inline void store_tiles(idx rows, Sum* c) {
  Sum* const below = c + upper_rows(rows) * kPair;
  QK_MEMORY_BARRIER();
  _tile_stored(0, c, kPair * 4);
  _tile_stored(1, c + kPanel, kPair * 4);
  if constexpr (Lower) {
    _tile_stored(2, below, kPair * 4);
    _tile_stored(3, below + kPanel, kPair * 4);
  }
  QK_MEMORY_BARRIER();
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
