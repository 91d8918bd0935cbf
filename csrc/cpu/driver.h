// The loops around a micro-kernel, compiled once per ISA.
//
// An ISA file defines `template <bool ASigned, bool WSigned> struct Isa` and then instantiates `Driver<Isa<…>>`. All of
// it lives in that file's anonymous namespace, so that no AVX-512 copy of a template can be linked into another path.
//
// What Isa provides:
//   kMr, kPanels            the tile: kMr rows × kPanels·16 columns
//   kKStep                  K of an A panel and of the weights is a multiple of this
//   kFlip                   0x80 when A's bytes are stored with the sign bit flipped, else 0
//   a_bytes(rows, k)        bytes of a packed A panel
//   pack(g, i, rows, dst)
//   micro(rows, panels, a, w, w_panel, k, first, out, out_row)
//                           out[rows][…] = first[…] + A panel × weight panels; whole panels of columns, k a multiple of
//                           kKStep. `first` is all zeros where kFlip is 0
//
//            n ──►   panel panel panel …
//         ┌─────────┬─────┬─────┬─────┐                    for m blocks (of MC rows: what stays in L2)
//   m  MC │ A panel │tile │     │     │                      pack A[MC, K]
//   │     │ A panel │     │     │     │                      for weight panels, each staying in L1
//   ▼     └─────────┴─────┴─────┴─────┘                        for A panels, streamed: micro-kernel; store
// Why tiles that need nothing else go from the registers into out: through a buffer, with the flip taken off there, 12×32
// tiles of K = 512 lost an eighth. So the flip is in the sums from the start.
#pragma once
#include <string.h>

#include "../kernel.h"
#include "finish.h"

namespace qk {
namespace QK_ISA {
namespace {

// A's bytes as the vector micro-kernels want them: chunks of 16 k, rows side by side, [k/16][rows][16] of Elem, zeros
// behind K. A chunk is one load, one flip or widening, one store.
template <class Elem, bool Signed, unsigned Flip>
inline void pack_chunks(const Gemm& g, idx i0, idx rows, Elem* dst) {
  const auto element = [](uint8_t raw) {
    const uint8_t byte = uint8_t(raw ^ Flip);
    return Signed ? Elem(int8_t(byte)) : Elem(byte);
  };
  const uint8_t* corner = g.a + i0 * g.a_row;
  const idx k = g.k, whole = g.a_col == 1 ? k / kChunk : 0;
  for (idx r = 0; r < rows; ++r) {
    const uint8_t* src = corner + r * g.a_row;
    Elem* to = dst + r * kChunk;
    for (idx q = 0; q < whole; ++q, src += kChunk, to += rows * kChunk)
      for (idx t = 0; t < kChunk; ++t) to[t] = element(src[t]);
  }
  for (idx q = whole; q < ceil_div(k, kChunk); ++q)
    for (idx r = 0; r < rows; ++r) {
      const idx have = min_of(kChunk, k - q * kChunk);
      const uint8_t* src = corner + r * g.a_row + q * kChunk * g.a_col;
      Elem* to = dst + (q * rows + r) * kChunk;
      for (idx t = 0; t < have; ++t) to[t] = element(src[t * g.a_col]);
      for (idx t = have; t < kChunk; ++t) to[t] = 0;
    }
}

// Σ_k a[i, k], mod 2³².
template <bool Signed>
inline uint32_t row_sum(const Gemm& g, idx i) {
  const uint8_t* row = g.a + i * g.a_row;
  uint32_t sum = 0;
  if (g.a_col == 1)
    for (idx k = 0; k < g.k; ++k) sum += Signed ? uint32_t(int32_t(int8_t(row[k]))) : row[k];
  else
    for (idx k = 0; k < g.k; ++k) sum += Signed ? uint32_t(int32_t(int8_t(row[k * g.a_col]))) : row[k * g.a_col];
  return sum;
}

// Per row: zero[r] multiplies the column sum; sum[r] multiplies the weight's zero point (A2).
template <bool ASigned>
inline void row_terms(const Gemm& g, idx i0, idx rows, uint32_t* zero, uint32_t* sum) {
  for (idx r = 0; r < rows; ++r) {
    const uint32_t z = g.a_zero ? uint32_t(g.a_zero[i0 + r]) : 0u;
    zero[r] = z;
    sum[r] = g.w_zero ? row_sum<ASigned>(g, i0 + r) - uint32_t(g.k) * z : 0u;
  }
}

// sums −= zero · colsum[j] + w_zero[j] · sum
inline void add_terms(const Gemm& g, int32_t* sums, idx j0, idx cols, uint32_t zero, uint32_t sum) {
  if (g.a_zero)
    for (idx j = 0; j < cols; ++j) sums[j] = int32_t(uint32_t(sums[j]) - zero * uint32_t(g.w_sums[j0 + j]));
  if (g.w_zero)
    for (idx j = 0; j < cols; ++j) sums[j] = int32_t(uint32_t(sums[j]) - sum * uint32_t(g.w_zero[j0 + j]));
}

inline void add_row(int32_t* to, const int32_t* sums, idx cols) {
  for (idx j = 0; j < cols; ++j) to[j] = int32_t(uint32_t(to[j]) + uint32_t(sums[j]));
}

template <class I, bool ASigned>
struct Driver {
  static constexpr idx kMr = I::kMr, kNr = I::kPanels * kPanel, kKStep = I::kKStep;
  static constexpr bool kNeedsSums = I::kFlip != 0;
  // a' = a + shift is what the micro-kernel multiplies; shift · Σw comes off again.
  static constexpr uint32_t kShift = I::kFlip == 0 ? 0u : ASigned ? 128u : uint32_t(-128);

  struct Scratch {  // how a thread's scratch is divided
    idx rows;       // of a block: half of L2 holds its panels, the rest a weight panel and the traffic
    idx panel, terms, tile, total;
  };

  static Scratch divide(const Gemm& g) {
    Scratch s;
    s.panel = padded(I::a_bytes(kMr, padded(g.k, kKStep)), 64);
    s.rows = min_of(max_of(g.l2_bytes / 2 / s.panel, 1) * kMr, padded(g.m, kMr));
    s.terms = s.rows / kMr * s.panel;
    s.tile = s.terms + padded(s.rows * 2 * 4, 64);
    s.total = s.tile + kMr * kNr * 4;
    return s;
  }

  static size_t scratch_bytes(const Gemm& g) { return size_t(divide(g).total); }

  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    const Scratch s = divide(g);
    for (idx m0 = m.begin; m0 < m.end; m0 += s.rows)
      rows_block(g, s, {m0, min_of(m0 + s.rows, m.end)}, n, static_cast<uint8_t*>(scratch));
  }

 private:
  static void rows_block(const Gemm& g, const Scratch& s, Range m, Range n, uint8_t* scratch) {
    uint32_t* const zero = reinterpret_cast<uint32_t*>(scratch + s.terms);
    uint32_t* const sum = zero + s.rows;
    int32_t* const tile = reinterpret_cast<int32_t*>(scratch + s.tile);
    const bool plain = !g.a_zero && !g.w_zero && !g.add && !g.epilogue;
    const idx k = padded(g.k, kKStep);
    if (!plain) row_terms<ASigned>(g, m.begin, m.end - m.begin, zero, sum);
    uint8_t* panel = scratch;
    for (idx i = m.begin; i < m.end; i += kMr, panel += s.panel) I::pack(g, i, min_of(kMr, m.end - i), panel);
    for (idx j = n.begin; j < n.end; j += kNr) {
      const idx cols = min_of(kNr, n.end - j);
      const int panels = int(ceil_div(cols, kPanel));
      const uint8_t* const w = g.w + j / kPanel * g.w_panel;
      int32_t first[kNr] = {};
      if (kShift != 0)
        for (idx c = 0; c < panels * kPanel; ++c) first[c] = int32_t(0u - kShift * uint32_t(g.w_sums[j + c]));
      const bool direct = plain && cols == panels * kPanel;
      panel = scratch;
      for (idx i = m.begin; i < m.end; i += kMr, panel += s.panel) {
        const idx rows = min_of(kMr, m.end - i), r = i - m.begin;
        if (direct) {
          I::micro(int(rows), panels, panel, w, g.w_panel, k, first, g.out + i * g.out_row + j, g.out_row);
        } else {
          I::micro(int(rows), panels, panel, w, g.w_panel, k, first, tile, kNr);
          store(g, tile, i, rows, j, cols, zero + r, sum + r);
        }
      }
    }
  }

  // tile −= zero[r] · colsum[j] + w_zero[j] · sum[r]; then the epilogue, or out (+)= tile
  static void store(const Gemm& g, int32_t* tile, idx i0, idx rows, idx j0, idx cols, const uint32_t* zero,
                    const uint32_t* sum) {
    for (idx r = 0; r < rows; ++r) add_terms(g, tile + r * kNr, j0, cols, zero[r], sum[r]);
    if (g.epilogue) return finish_rows(*g.epilogue, tile, kNr, i0, rows, j0, cols);
    for (idx r = 0; r < rows; ++r) {
      int32_t* const to = g.out + (i0 + r) * g.out_row + j0;
      const int32_t* const from = tile + r * kNr;
      if (g.add) add_row(to, from, cols);
      else if (cols == kNr) memcpy(to, from, size_t(kNr) * 4);  // a constant size: registers, no call
      else memcpy(to, from, size_t(cols) * 4);
    }
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
