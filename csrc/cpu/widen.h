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
//
// `V` names the instruction set: type Reg, kCols (columns a register holds), zero, widen<Signed>(bytes), splat(4 × s16),
// mul_add(acc, x, y), join(acc, out): kPanel/kCols accumulators → 16 sums.
#pragma once
#include "driver.h"

namespace qk {
namespace QK_ISA {
namespace {

template <class V, bool WSigned, int Rows, int PanelRegs>
inline void widen_columns(const int16_t* a, const uint8_t* w, idx groups, typename V::Reg (*acc)[PanelRegs]) {
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < PanelRegs; ++c) acc[r][c] = V::zero();
  for (idx q = 0; q < groups; ++q) {
    typename V::Reg y[PanelRegs];
    for (int c = 0; c < PanelRegs; ++c)
      y[c] = V::template widen<WSigned>(w + q * kPanel * kGroup + c * V::kCols * kGroup);
    for (int r = 0; r < Rows; ++r) {
      const typename V::Reg x = V::splat(a + (q * Rows + r) * kGroup);
      for (int c = 0; c < PanelRegs; ++c) acc[r][c] = V::mul_add(acc[r][c], x, y[c]);
    }
  }
}

// Columns of a panel are taken `Regs` registers at a time: all of them for few rows, so that one pass over the weights
// has independent sums enough; as many as leave registers for all rows else.
template <class V, bool WSigned, int Rows, int Regs>
void widen_micro(const int16_t* a, const uint8_t* w, idx groups, int32_t* tile, idx tile_row) {
  constexpr int kCols = Regs * V::kCols;
  for (int first = 0; first < kPanel; first += kCols) {
    typename V::Reg acc[Rows][Regs];
    widen_columns<V, WSigned, Rows, Regs>(a, w + first * kGroup, groups, acc);
    for (int r = 0; r < Rows; ++r) V::join(acc[r], tile + r * tile_row + first);
  }
}

template <class V, bool ASigned, bool WSigned, int Mr, int MaxSums>
struct WidenIsa {
  static constexpr idx kMr = Mr, kPanels = 1, kKStep = kGroup, kKc = 0;
  static constexpr unsigned kFlip = 0;
  static constexpr bool kRowsFirst = false;
  static constexpr idx a_bytes(idx rows, idx k) { return rows * k * 2; }
  static bool in_place(const Gemm&) { return false; }
  static void begin() {}
  static void finish() {}
  static void prepare(idx) {}

  static void pack(const Gemm& g, idx i, idx rows, idx k0, idx k, uint8_t* dst) {
    pack_groups<int16_t, ASigned, 0>(g, i, rows, k0, k, reinterpret_cast<int16_t*>(dst));
  }

  template <int Rows>
  static void of_rows(const int16_t* a, const uint8_t* w, idx groups, int32_t* tile) {
    constexpr int kAll = int(kPanel) / V::kCols;
    constexpr int kRegs = Rows * kAll <= MaxSums ? kAll : kAll / 2;
    widen_micro<V, WSigned, Rows, kRegs>(a, w, groups, tile, kPanel);
  }

  static void micro(int rows, int, const uint8_t* a, idx, idx, const uint8_t* w, idx, idx k, int32_t* tile, bool) {
    const int16_t* x = reinterpret_cast<const int16_t*>(a);
    dispatch<Mr>(rows, x, w, k / kGroup, tile);
  }

  template <int Rows>
  static void dispatch(int rows, const int16_t* a, const uint8_t* w, idx groups, int32_t* tile) {
    if (rows == Rows) return of_rows<Rows>(a, w, groups, tile);
    if constexpr (Rows > 1) dispatch<Rows - 1>(rows, a, w, groups, tile);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
