// Weights that are made of codes, a block at a time, before it is multiplied: for Strips (amx_strips.h).
//
// Why not while the block before is multiplied: beside multiplications 512-bit instructions start once a cycle, not
// twice, and two blocks in L2 leave each half as wide, so that A passes twice as often. At 512×4096×4096 7.5 ms against
// 6.0 of int8, 18 against 14 of bfloat16.
#pragma once
#include "amx_strips.h"
#include "int4.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Made {
  const Int4& g;
  const Gemm& product;
  void (*make)(const Int4&, idx panel, uint8_t* to);
  uint8_t* room;

  static idx room_bytes(const Gemm& p) { return min_of(blocks(p).nc, padded(p.n, kPair)) / kPanel * p.w_panel; }
  static size_t scratch_bytes(const Gemm& p) { return size_t(room_bytes(p) + divide(p).total); }

  bool in_place() const { return false; }
  const uint8_t* weights(Range n) const {
    const idx first = n.begin / kPanel;
    for (idx p = first; p * kPanel < n.end; ++p) make(g, p, room + (p - first) * product.w_panel);
    return room - first * product.w_panel;
  }
  Coming ahead(Range n) const {
    return {g.w + n.begin / kPanel * g.w_panel, ceil_div(n.end - n.begin, kPanel) * g.w_panel};
  }
};

// The product whose weights are g's, made into bytes: `wide` of them for each k.
inline Gemm product_of(const Int4& g, idx wide) {
  Gemm p = {};
  p.m = g.m, p.n = g.n, p.k = g.k * wide;
  p.w_panel = g.k_whole() * wide * kPanel;
  p.epilogue = g.epilogue;
  p.l1_bytes = g.l1_bytes, p.l2_bytes = g.l2_bytes;
  return p;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
