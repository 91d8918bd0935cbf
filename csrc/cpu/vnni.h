// The byte dot product micro-kernel: vpdpbusd, acc[j] += Σ_t u[4j + t] · s[4j + t], u unsigned, s signed, exact in 32 bits.
//
// One operand must be unsigned and the other signed. Weights stay as they are packed; where the signs are equal, A's
// sign bit is flipped as A is packed (a ± 128), and the sums begin at ∓128 · colsum (`first`):
//     u8·s8  u = a, s = w              s8·s8  u = a + 128, s = w
//     s8·u8  u = w, s = a              u8·u8  u = w, s = a − 128
// Why not flip in the loop: an xor for each splat costs a fifth of the two vector ports.
//
// `V` names the vector width: Reg, kLanes (32-bit), zero, load, load_sums, splat(4 bytes), mul_add(acc, u, s), add, store.
#pragma once
#include "driver.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

template <class V, bool WSigned, int Rows, int Panels, int Split>
void vnni_micro(const uint8_t* a, const uint8_t* w, idx w_panel, idx chunks, const int32_t* first, int32_t* out,
                idx out_row) {
  using Reg = typename V::Reg;
  constexpr int kRegs = int(kPanel) / V::kLanes;  // of one panel
  constexpr int kSums = Panels * kRegs;
  Reg acc[Split][Rows][kSums];
  unroll<Split>([&](auto s) QK_INLINE {
    unroll<Rows>([&](auto r) QK_INLINE {
      unroll<kSums>([&](auto c) QK_INLINE { acc[s][r][c] = s == 0 ? V::load_sums(first + c * V::kLanes) : V::zero(); });
    });
  });
  for (idx q = 0; q < chunks; ++q, a += Rows * kChunk, w += kChunk * kPanel)
    unroll<kChunk / kGroup>([&](auto group) QK_INLINE {
      const int s = group % Split;
      Reg y[kSums];
      unroll<kSums>([&](auto c) QK_INLINE {
        y[c] = V::load(w + c / kRegs * w_panel + group * kPanel * kGroup + c % kRegs * V::kLanes * kGroup);
      });
      unroll<Rows>([&](auto r) QK_INLINE {
        const Reg x = V::splat(a + r * kChunk + group * kGroup);
        unroll<kSums>([&](auto c) QK_INLINE {
          acc[s][r][c] = WSigned ? V::mul_add(acc[s][r][c], x, y[c]) : V::mul_add(acc[s][r][c], y[c], x);
        });
      });
    });
  unroll<Rows>([&](auto r) QK_INLINE {
    unroll<kSums>([&](auto c) QK_INLINE {
      Reg sum = acc[0][r][c];
      unroll<Split - 1>([&](auto s) QK_INLINE { sum = V::add(sum, acc[s + 1][r][c]); });
      V::store(out + r * out_row + c * V::kLanes, sum);
    });
  });
}

template <class V, bool ASigned, bool WSigned, int Mr, int Panels, int MaxSums>
struct VnniIsa {
  static constexpr idx kMr = Mr, kPanels = Panels, kKStep = kChunk;
  static constexpr unsigned kFlip = ASigned == WSigned ? 0x80 : 0;
  static constexpr idx a_bytes(idx rows, idx k) { return rows * k; }

  static void pack(const Gemm& g, idx i, idx rows, uint8_t* dst) {
    pack_chunks<uint8_t, false, kFlip>(g, i, rows, dst);
  }

  // vpdpbusd takes 4–5 cycles and two start each cycle: fewer than 8 independent sums wait for themselves.
  template <int Rows, int P>
  static constexpr int split() {
    constexpr int kSums = Rows * P * int(kPanel) / V::kLanes;
    return kSums * 4 <= MaxSums && kSums < 3 ? 4 : kSums * 2 < MaxSums && kSums < 8 ? 2 : 1;
  }

  static void micro(int rows, int panels, const uint8_t* a, const uint8_t* w, idx w_panel, idx k, const int32_t* first,
                    int32_t* out, idx out_row) {
    dispatch<Mr>(rows, panels, a, w, w_panel, k / kChunk, first, out, out_row);
  }

  template <int Rows>
  static void dispatch(int rows, int panels, const uint8_t* a, const uint8_t* w, idx w_panel, idx chunks,
                       const int32_t* first, int32_t* out, idx out_row) {
    if (rows == Rows) {
      if (panels == Panels)
        vnni_micro<V, WSigned, Rows, Panels, split<Rows, Panels>()>(a, w, w_panel, chunks, first, out, out_row);
      else vnni_micro<V, WSigned, Rows, 1, split<Rows, 1>()>(a, w, w_panel, chunks, first, out, out_row);
      return;
    }
    if constexpr (Rows > 1) dispatch<Rows - 1>(rows, panels, a, w, w_panel, chunks, first, out, out_row);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
