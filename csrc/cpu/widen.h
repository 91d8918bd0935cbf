// The exact 8-bit micro-kernel without a byte dot product: both factors as 16-bit, pmaddwd, 32-bit adds.
//
//   one 64-byte group of a panel  n0:k0 k1 k2 k3  n1:k0 k1 k2 k3 …        (bytes)
//   widened, kCols columns a register              n0:k01,k23  n1:k01,k23 …   × splat of a[r][k0…k3], pmaddwd
//   accumulator                                    n0:p  n0:q  n1:p  n1:q …   joined once, after the last k
//
// Nothing saturates: |a·w| ≤ 255², a pair ≤ 130 050. A is widened when it is packed, once for all columns; weights are
// widened on the way into the register, shared by the rows of the tile.
//
// Why not vpmaddubsw: it saturates its 16-bit sums (−128·255·2), wrong for full-range data, which is what oneDNN and
// FBGEMM do without VNNI.
// Why not software prefetch for few rows: neither 2 KiB ahead nor the next panel while this one is multiplied moved the
// median of 1×11008×4096 beyond noise (3.37 and 3.38 ms), and the second cost 10 % where the weights are in L3.
//
// `V` names the instruction set: type Reg, kCols (columns a register holds), zero, widen<Signed>(bytes), splat(4 × s16),
// mul_add(acc, x, y), join(x, y, out): two accumulators → 2 · kCols sums.
#pragma once
#include "driver.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

// Columns of a panel are taken `Regs` registers at a time: all of them for few rows, so that one pass over the weights
// has independent sums enough; as many as leave registers for all rows else.
template <class V, bool WSigned, int Rows, int Regs>
void widen_micro(const int16_t* a0, const uint8_t* w0, idx chunks, int32_t* tile, idx tile_row) {
  using Reg = typename V::Reg;
  constexpr int kCols = Regs * V::kCols;
  for (int first = 0; first < kPanel; first += kCols) {
    const int16_t* a = a0;
    const uint8_t* w = w0 + first * kGroup;
    Reg acc[Rows][Regs];
    unroll<Rows>([&](auto r) QK_INLINE { unroll<Regs>([&](auto c) QK_INLINE { acc[r][c] = V::zero(); }); });
    for (idx q = 0; q < chunks; ++q, a += Rows * kChunk, w += kChunk * kPanel)
      unroll<kChunk / kGroup>([&](auto group) QK_INLINE {
        Reg y[Regs];
        unroll<Regs>([&](auto c) QK_INLINE {
          y[c] = V::template widen<WSigned>(w + group * kPanel * kGroup + c * V::kCols * kGroup);
        });
        unroll<Rows>([&](auto r) QK_INLINE {
          const Reg x = V::splat(a + r * kChunk + group * kGroup);
          unroll<Regs>([&](auto c) QK_INLINE { acc[r][c] = V::mul_add(acc[r][c], x, y[c]); });
        });
      });
    unroll<Rows>([&](auto r) QK_INLINE {
      unroll<Regs / 2>([&](auto c) QK_INLINE {
        V::join(acc[r][2 * c], acc[r][2 * c + 1], tile + r * tile_row + first + 2 * c * V::kCols);
      });
    });
  }
}

template <class V, bool ASigned, bool WSigned, int Mr, int MaxSums>
struct WidenIsa {
  static constexpr idx kMr = Mr, kPanels = 1, kKStep = kChunk;
  static constexpr unsigned kFlip = 0;
  static constexpr idx a_bytes(idx rows, idx k) { return rows * k * 2; }

  static void pack(const Gemm& g, idx i, idx rows, uint8_t* dst) {
    pack_chunks<int16_t, ASigned, 0>(g, i, rows, reinterpret_cast<int16_t*>(dst));
  }

  template <int Rows>
  static void of_rows(const int16_t* a, const uint8_t* w, idx chunks, int32_t* out, idx out_row) {
    constexpr int kAll = int(kPanel) / V::kCols;
    constexpr int kRegs = Rows * kAll <= MaxSums ? kAll : kAll / 2;
    widen_micro<V, WSigned, Rows, kRegs>(a, w, chunks, out, out_row);
  }

  static void micro(int rows, int, const uint8_t* a, const uint8_t* w, idx, idx k, const int32_t*, int32_t* out,
                    idx out_row) {
    dispatch<Mr>(rows, reinterpret_cast<const int16_t*>(a), w, k / kChunk, out, out_row);
  }

  template <int Rows>
  static void dispatch(int rows, const int16_t* a, const uint8_t* w, idx chunks, int32_t* out, idx out_row) {
    if (rows == Rows) return of_rows<Rows>(a, w, chunks, out, out_row);
    if constexpr (Rows > 1) dispatch<Rows - 1>(rows, a, w, chunks, out, out_row);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
