// The loops around a micro-kernel, compiled once per ISA.
//
// An ISA file defines `template <bool ASigned, bool WSigned> struct Isa` and then instantiates `Driver<Isa<…>>`. All of
// it lives in that file's anonymous namespace, so that no AVX-512 copy of a template can be linked into another path.
//
// What Isa provides:
//   kMr, kPanels            the tile: kMr rows × kPanels·16 columns
//   kKStep                  K of an A panel and of the weights is a multiple of this
//   kFlip                   0x80 when A's bytes are stored with the sign bit flipped, else 0
//   kKc                     longest K that one micro-kernel call takes, or 0 for all of it
//   kRowsFirst              A stays in L1 and weight panels stream past it; else a weight panel stays, A panels stream
//   a_bytes(rows, k)        bytes of a packed A panel
//   in_place(g)             A is read where it lies
//   pack(g, i, rows, k0, k, dst)
//   prepare(rows)           before micro calls with another number of rows
//   micro(rows, panels, a, a_step, a_stride, w, w_panel, k, tile, add)
//                           tile[rows][kNr] (+)= A panel × weight panels; whole columns, k a multiple of kKStep
//   begin(), finish()       around a block
//
//            n ──►   panel panel panel …                 for n blocks (of NC columns: what stays in L2)
//         ┌─────────┬─────┬─────┬─────┐                    for m blocks (of MC rows)
//   m  MC │ A panel │tile │     │     │                      for k blocks (of KC)
//   │     │ A panel │     │     │     │                        pack A[MC, KC]
//   ▼     └─────────┴─────┴─────┴─────┘                        for tiles of the block: micro-kernel; store after the last k
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
inline void pack_chunks(const Gemm& g, idx i0, idx rows, idx k0, idx k, Elem* dst) {
  const auto element = [](uint8_t raw) {
    const uint8_t byte = uint8_t(raw ^ Flip);
    return Signed ? Elem(int8_t(byte)) : Elem(byte);
  };
  const uint8_t* corner = g.a + i0 * g.a_row + k0 * g.a_col;
  const idx whole = g.a_col == 1 ? k / kChunk : 0;
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

// Per row: zero[r] multiplies the column sum; sum[r] multiplies the weight's zero point (A2). `Shift`: what was added to
// A's bytes.
template <bool ASigned, uint32_t Shift>
inline void row_terms(const Gemm& g, idx i0, idx rows, uint32_t* zero, uint32_t* sum) {
  for (idx r = 0; r < rows; ++r) {
    const uint32_t z = g.a_zero ? uint32_t(g.a_zero[i0 + r]) : 0u;
    zero[r] = z + Shift;
    sum[r] = g.w_zero ? row_sum<ASigned>(g, i0 + r) - uint32_t(g.k) * z : 0u;
  }
}

// sums −= zero · colsum[j] + w_zero[j] · sum
template <bool Shifted = false>
inline void add_terms(const Gemm& g, int32_t* sums, idx j0, idx cols, uint32_t zero, uint32_t sum) {
  if (Shifted || g.a_zero)
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
  static constexpr idx kTileBytes = I::kMr * kNr * 4;
  // a' = a + shift is what the micro-kernel multiplies; the epilogue takes shift · Σw off again.
  static constexpr uint32_t kShift = I::kFlip == 0 ? 0u : ASigned ? 128u : uint32_t(-128);

  struct Blocks {
    idx mc, nc, kc;
  };

  static Blocks blocks(const Gemm& g) {
    const idx k = padded(g.k, I::kKStep);
    const idx kc = I::kKc ? min_of(k, idx(I::kKc)) : k;
    if (I::kRowsFirst) {  // a block of weights, nc × all of K, stays in L2 while strips of A pass
      const idx fits = g.l2_bytes * 5 / 8 / k / kNr * kNr;
      return {I::kMr, max_of(fits, 2 * kNr), kc};
    }
    // half of L2 holds A panels, the rest a weight panel and the traffic
    const idx panel = I::a_bytes(I::kMr, kc);
    return {max_of(g.l2_bytes / 2 / panel, 1) * I::kMr, PTRDIFF_MAX / 2, kc};
  }

  struct Scratch {  // how a thread's scratch is divided
    idx a, terms, tiles, total;
  };

  static Scratch divide(const Gemm& g, const Blocks& b) {
    const idx mc = min_of(b.mc, padded(g.m, I::kMr)), nc = min_of(b.nc, padded(g.n, kNr));
    const bool split_k = b.kc < padded(g.k, I::kKStep);
    Scratch s;
    s.a = 0;
    s.terms = padded(ceil_div(mc, I::kMr) * padded(I::a_bytes(I::kMr, b.kc), 64), 64);
    s.tiles = s.terms + padded(mc * 2 * 4, 64);
    s.total = s.tiles + (split_k ? ceil_div(mc, I::kMr) * ceil_div(nc, kNr) : 1) * kTileBytes;
    return s;
  }

  static size_t scratch_bytes(const Gemm& g) { return size_t(divide(g, blocks(g)).total); }

  // tile −= zero[r] · colsum[j] + w_zero[j] · sum[r]; then the epilogue, or out (+)= tile
  static void store(const Gemm& g, int32_t* tile, idx i0, idx rows, idx j0, idx cols, const uint32_t* zero,
                    const uint32_t* sum) {
    for (idx r = 0; r < rows; ++r) add_terms<kShift != 0>(g, tile + r * kNr, j0, cols, zero[r], sum[r]);
    if (g.epilogue) return finish_rows(*g.epilogue, tile, kNr, i0, rows, j0, cols);
    for (idx r = 0; r < rows; ++r) {
      int32_t* const to = g.out + (i0 + r) * g.out_row + j0;
      int32_t* const from = tile + r * kNr;
      if (g.add) add_row(to, from, cols);
      else if (cols == kNr) memcpy(to, from, size_t(kNr) * 4);  // a constant size: registers, no call
      else memcpy(to, from, size_t(cols) * 4);
    }
  }

  static void block(const Gemm& g, Range m, Range n, void* scratch) {
    const Blocks b = blocks(g);
    I::begin();
    for (idx n0 = n.begin; n0 < n.end; n0 += b.nc)
      for (idx m0 = m.begin; m0 < m.end; m0 += b.mc)
        cache_block(g, b, {m0, min_of(m0 + b.mc, m.end)}, {n0, min_of(n0 + b.nc, n.end)},
                    static_cast<uint8_t*>(scratch));
    I::finish();
  }

 private:
  // All of K for rows m and columns n, which fit the caches.
  static void cache_block(const Gemm& g, const Blocks& b, Range m, Range n, uint8_t* scratch) {
    const Scratch s = divide(g, b);
    uint32_t* const zero = reinterpret_cast<uint32_t*>(scratch + s.terms);
    uint32_t* const sum = zero + min_of(b.mc, padded(g.m, I::kMr));
    int32_t* const tiles = reinterpret_cast<int32_t*>(scratch + s.tiles);
    const bool in_place = I::in_place(g);
    const idx panel_bytes = padded(I::a_bytes(I::kMr, b.kc), 64);
    row_terms<ASigned, kShift>(g, m.begin, m.end - m.begin, zero, sum);
    for (idx k0 = 0; k0 < g.k; k0 += b.kc) {
      const idx k = min_of(b.kc, g.k - k0), k_whole = padded(k, I::kKStep);
      const bool first = k0 == 0, last = k0 + b.kc >= g.k;
      if (!in_place)
        for (idx i = m.begin; i < m.end; i += I::kMr)
          I::pack(g, i, min_of(I::kMr, m.end - i), k0, k, scratch + s.a + (i - m.begin) / I::kMr * panel_bytes);
      int32_t* tile = tiles;
      idx prepared = 0;
      for (idx j = n.begin; j < n.end; j += kNr) {
        const int panels = int(min_of(I::kPanels, ceil_div(n.end - j, kPanel)));
        const uint8_t* w = g.w + j / kPanel * g.w_panel + k0 * kPanel;
        for (idx i = m.begin; i < m.end; i += I::kMr) {
          const idx rows = min_of(I::kMr, m.end - i), r = i - m.begin;
          if (rows != prepared) I::prepare(prepared = rows);
          const uint8_t* a = in_place ? g.a + i * g.a_row + k0 : scratch + s.a + r / I::kMr * panel_bytes;
          I::micro(int(rows), panels, a, in_place ? I::kKStep : rows * I::kKStep, in_place ? g.a_row : I::kKStep, w,
                   g.w_panel, k_whole, tile, !first);
          if (last) store(g, tile, i, rows, j, min_of(kNr, n.end - j), zero + r, sum + r);
          if (!(first && last)) tile += I::kMr * kNr;  // partial sums of every tile wait for the next k block
        }
      }
    }
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
