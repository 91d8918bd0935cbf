// Weights of 2, 4 and 8 bits multiplied straight from their packed bytes, compiled once per ISA.
//
//   a line of 64 bytes   n0: k0|k4 k1|k5 k2|k6 k3|k7   n1: …        (4 bits: low nibble | high nibble)
//   and 15               n0: k0 k1 k2 k3               n1: …        × splat of a[r][k0…k3]
//   shift 4, and 15      n0: k4 k5 k6 k7               n1: …        × splat of a[r][k4…k7]
//
// A code of 8 bits is its own plane, and is seen unsigned too: a signed one is flipped in a register. Where one of two
// operands must be signed and activations are not (VNNI), the codes are flipped to signed ones, and 128 moves into the
// zero point.
// The codes are unsigned and otherwise never flipped: zero points enter once a group, through the group's sum of a, as
// the start of its accumulator. All of K runs in registers, the sums of a group in 32-bit integers, those of the groups in
// float (fma, ascending g: A10) or in integers. One row is bound by memory: a panel is one stream, read once, in order.
//
// Why rows of A are packed as [k/4][rows][4]: every splat has a constant distance from one pointer.
// Why not unpack a panel for many rows on VNNI: 3 instructions for 2 · 12 products at 12 rows, and no second copy in L1.
//
// `V` names the instruction set: types Reg and Float of kLanes 32-bit lanes; Part and dot/close (how four products are
// summed; kOneSigned: only of an unsigned and a signed byte); load, plane, flip (the sign of bytes), splat; start, times,
// add, sub; to_float, scale, fma; store.
#pragma once
#include <string.h>

#include "finish.h"
#include "int4.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Strip {            // some rows of A, packed
  const uint8_t* a;       // [k/4][rows][4], zeros behind K
  const int32_t* a_sums;  // [group][rows]
  const int32_t* a_zero;  // of its rows, or null
};

template <bool ASigned>
inline int32_t element(uint8_t byte) {
  return ASigned ? int32_t(int8_t(byte)) : int32_t(byte);
}

// `rows` rows from i on → strip, K padded to a packed matrix'.
template <bool ASigned>
void pack_strip(const Int4& g, idx i, idx rows, uint8_t* a, int32_t* a_sums) {
  const idx k_whole = g.k_whole();
  for (idx r = 0; r < rows; ++r) {
    const uint8_t* row = g.a + (i + r) * g.a_row;
    uint8_t* to = a + r * kGroup;
    idx k = 0;
    if (g.a_col == 1 && rows == 1) memcpy(a, row, size_t(k = g.k / kGroup * kGroup));
    else if (g.a_col == 1)
      for (; k + kGroup <= g.k; k += kGroup) memcpy(to + k * rows, row + k, kGroup);
    for (; k < k_whole; ++k) to[k / kGroup * kGroup * rows + k % kGroup] = k < g.k ? row[k * g.a_col] : 0;
    for (idx q = 0, first = 0; first < g.k; ++q, first += g.group) {
      const idx end = min_of(first + g.group, g.k);
      int32_t sum = 0;
      if (g.a_col == 1)
        for (idx t = first; t < end; ++t) sum += element<ASigned>(row[t]);
      else
        for (idx t = first; t < end; ++t) sum += element<ASigned>(row[t * g.a_col]);
      a_sums[q * rows + r] = sum;
    }
  }
}

constexpr idx kSpan = 64;  // columns that are finished at a time: a call for each panel costs one row 2 %

// One panel: 16 columns of tile[Rows][kSpan].
template <class V, bool ASigned, class W, bool Floats, int Rows, int Regs, int Split>
void direct_panel(const Int4& g, const Strip& s, idx panel, idx first_column, int32_t* tile) {
  using Reg = typename V::Reg;
  using Float = typename V::Float;
  constexpr int kBits = W::kBits, kPlanes = 8 / kBits, kLines = kBits / 2;  // of a line; in a unit of 16 k
  constexpr bool kToSigned = kBits == 8 && V::kOneSigned && !ASigned, kFlip = kToSigned != W::kSigned;
  constexpr int kMoved = kToSigned ? 128 : 0;
  constexpr idx kLineBytes = kPanel * kGroup;
  const idx groups = g.groups();
  const idx at_panel = panel * groups * kPanel + first_column;
  const uint8_t* w = g.w + panel * g.w_panel + first_column * kGroup;
  const uint8_t* a = s.a;
  Reg total[Rows][Regs];
  Float y[Rows][Regs];
  unroll<Rows>([&](auto r) QK_INLINE {
    unroll<Regs>([&](auto c) QK_INLINE { Floats ? void(y[r][c] = V::zero_float()) : void(total[r][c] = V::zero()); });
  });
  for (idx q = 0; q < groups; ++q) {
    const idx at = at_panel + q * kPanel;
    Reg acc[Split][Rows][Regs];
    unroll<Rows>([&](auto r) QK_INLINE {
      const int32_t a_sum = s.a_sums[q * Rows + r];
      unroll<Regs>([&](auto c) QK_INLINE {
        acc[0][r][c] = g.zeros ? V::times(V::bytes(g.zeros + at + c * V::kLanes), -a_sum) : V::start(-g.zero * a_sum);
        if (kMoved) acc[0][r][c] = V::add(acc[0][r][c], V::start(kMoved * a_sum));
      });
      unroll<Split - 1>([&](auto x)
                            QK_INLINE { unroll<Regs>([&](auto c) QK_INLINE { acc[x + 1][r][c] = V::zero(); }); });
    });
    const idx units = ceil_div(min_of(g.group, g.k - q * g.group), kUnit);
    for (idx unit = 0; unit < units; ++unit, w += kLines * kLineBytes, a += kUnit * Rows) {
      typename V::Part part[Rows][Regs];
      unroll<kLines>([&](auto line) QK_INLINE {
        Reg x[Regs];
        unroll<Regs>([&](auto c) QK_INLINE { x[c] = V::load(w + line * kLineBytes + c * V::kLanes * kGroup); });
        unroll<kPlanes>([&](auto plane) QK_INLINE {
          const int quad = line * kPlanes + plane;
          Reg u[Regs];
          unroll<Regs>([&](auto c) QK_INLINE { u[c] = V::template plane<kBits>(kFlip ? V::flip(x[c]) : x[c], plane); });
          unroll<Rows>([&](auto r) QK_INLINE {
            const Reg v = V::splat(a + (quad * Rows + r) * kGroup);
            unroll<Regs>([&](auto c) QK_INLINE {
              V::template dot<ASigned, kBits>(acc[quad % Split][r][c], part[r][c], u[c], v, quad);
            });
          });
        });
      });
      unroll<Rows>([&](auto r) QK_INLINE {
        unroll<Regs>([&](auto c) QK_INLINE { V::template close<kBits>(acc[0][r][c], part[r][c]); });
      });
    }
    Float scale[Regs];
    Reg factor[Regs];
    unroll<Regs>([&](auto c) QK_INLINE {
      if (Floats) scale[c] = V::scale(g.scales, g.scale_type, at + c * V::kLanes);
      else factor[c] = g.factors ? V::bytes(g.factors + at + c * V::kLanes) : V::zero();
    });
    unroll<Rows>([&](auto r) QK_INLINE {
      unroll<Regs>([&](auto c) QK_INLINE {
        Reg sum = acc[0][r][c];
        unroll<Split - 1>([&](auto x) QK_INLINE { sum = V::add(sum, acc[x + 1][r][c]); });
        if (s.a_zero) sum = V::sub(sum, V::times(V::words(g.w_sums + at + c * V::kLanes), s.a_zero[r]));
        if (Floats) y[r][c] = V::fma(V::to_float(sum), scale[c], y[r][c]);
        else total[r][c] = V::add(total[r][c], g.factors ? V::mul(sum, factor[c]) : sum);
      });
    });
  }
  unroll<Rows>([&](auto r) QK_INLINE {
    unroll<Regs>([&](auto c) QK_INLINE {
      int32_t* const to = tile + r * kSpan + first_column + c * V::kLanes;
      if (Floats) V::store_float(to, y[r][c]);
      else V::store(to, total[r][c]);
    });
  });
}

template <class V, bool ASigned, class W, bool Floats>
struct Direct {
  static constexpr idx kMr = V::kMaxRows, kNr = kPanel;

  // Strips are of 1, 2, 3, 4, 8 or 12 rows: each height is a compilation of its own.
  static constexpr bool is_height(int rows) { return rows < 5 || rows == 8 || rows == 12; }

  static idx strip_rows(idx rows) {
    idx height = min_of(rows, kMr);
    while (!is_height(int(height))) --height;
    return height;
  }

  // Rows whose packed copy stays in half of L2.
  static idx rows_at_once(const Int4& g) {
    const idx row_bytes = g.k_whole() + g.groups() * 4;
    return min_of(g.m, max_of((idx(1) << 20) / row_bytes / kMr, 1) * kMr);
  }

  static size_t scratch_bytes(const Int4& g) {
    return size_t(rows_at_once(g) * (g.k_whole() + padded(g.groups() * 4, 64)) + 64);
  }

  static void block(const Int4& g, Range m, Range n, void* scratch) {
    const idx at_once = rows_at_once(g), k_whole = g.k_whole(), groups = g.groups();
    uint8_t* const a = static_cast<uint8_t*>(scratch);
    int32_t* const a_sums = reinterpret_cast<int32_t*>(a + at_once * k_whole);
    for (idx m0 = m.begin; m0 < m.end; m0 += at_once) {
      const idx rows = min_of(at_once, m.end - m0);
      for (idx r = 0, height; r < rows; r += height) {
        height = strip_rows(rows - r);
        pack_strip<ASigned>(g, m0 + r, height, a + r * k_whole, a_sums + r * groups);
      }
      for (idx j = n.begin; j < n.end; j += kSpan)
        for (idx r = 0, height; r < rows; r += height) {
          height = strip_rows(rows - r);
          const Strip strip = {a + r * k_whole, a_sums + r * groups, g.a_zero ? g.a_zero + m0 + r : nullptr};
          const idx columns = min_of(kSpan, n.end - j);
          alignas(64) int32_t tile[kMr * kSpan];
          for (idx c = 0; c < columns; c += kPanel)
            dispatch<int(kMr)>(int(height), g, strip, (j + c) / kPanel, tile + c);
          finish_rows(*g.epilogue, tile, kSpan, m0 + r, height, j, columns);
        }
    }
  }

 private:
  template <int Rows>
  static void dispatch(int rows, const Int4& g, const Strip& s, idx panel, int32_t* tile) {
    if constexpr (is_height(Rows)) {
      constexpr int kAll = int(kPanel) / V::kLanes;
      constexpr int kRegs = Rows * kAll <= V::kMaxSums ? kAll : 1;
      constexpr int kSplit = V::kSplits && Rows * kRegs < 2 ? 4 : V::kSplits && Rows * kRegs < 5 ? 2 : 1;
      if (rows == Rows) {
        for (idx c = 0; c < kPanel; c += kRegs * V::kLanes)
          direct_panel<V, ASigned, W, Floats, Rows, kRegs, kSplit>(g, s, panel, c, tile);
        return;
      }
    }
    if constexpr (Rows > 1) dispatch<Rows - 1>(rows, g, s, panel, tile);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
