// Narrow weights without a byte dot product: signed ones in −64 … 64, unsigned ones up to 128. Found when a handle to
// packed weights is made (pack.h), so that quantizing to 7 bits is all that a user does.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits, with saturation. Nothing saturates here:
// ±2 · 255 · 64 = ±32 640, and 2 · 128 · −128 = −32 768. Four k of a column: three instructions where widen.h has four
// and a widening; 512³ 153 → 212 GOPS (AVX2), 195 → 285 (AVX-512), one row from L2 21 → 12.5 and 17.7 → 10.8 µs. Signs,
// flips and the loop are those of vnni.h, whose one instruction these three are.
// Why not for weights that merely lack −128 (|a| · sign(w, a)): four instructions and two broadcasts, from registers 7 %
// more than widen.h.
#pragma once
#include "vnni.h"

namespace qk {
namespace QK_ISA {
namespace {

// `All` computes any product; Narrow those of narrow weights.
template <class All, class Narrow, bool ASigned>
struct NarrowDriver : Driver<All, ASigned> {
  using Full = Driver<All, ASigned>;
  using Fast = Driver<Narrow, ASigned>;

  static size_t scratch_bytes(const Gemm& g) {
    const size_t full = Full::scratch_bytes(g), fast = Fast::scratch_bytes(g);
    return full > fast ? full : fast;
  }
  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    if (g.w_narrow) Fast::block(g, m, n, scratch);
    else Full::block(g, m, n, scratch);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
