// Weights of 2, 4 and 8 bits times activations that stay real numbers (A11): y = Σ_g s_g Σ_{k∈g} x·(w − z), once per ISA.
//
// A code becomes a float in a register, exactly, its zero point taken off exactly too: Σ x·w − z·Σ x would cancel. A sum
// is kept in Parts independent floats (k mod Parts) of 8 terms each, added as a tree, then weighed and added in double:
// 8 + 3 + 1 roundings where A11 allows 16, whatever K is. Sums in float from group to group would be 128 at K = 4096.
//
// `V`: as in int4_direct.h, and value<Bits>(line, shift): the code at a bit offset of each 32-bit lane, as Float. One of 8
// bits comes with 2²³ added, which is its bits beneath an exponent, and leaves with the zero point: an `or`, no conversion.
#pragma once
#include "int4_direct.h"

namespace qk {
namespace QK_ISA {
namespace {

// One panel, Rows rows of x (adjacent, padded with zeros to whole units): tile[Rows][kSpan], float.
template <class V, class W, int Rows, int Parts>
void float_panel(const Int4& g, const float* x, idx x_row, idx panel, idx first_column, int32_t* tile) {
  using Float = typename V::Float;
  constexpr int kBits = W::kBits, kPlanes = 8 / kBits, kLines = kBits / 2;
  constexpr idx kLineBytes = kPanel * kGroup, kFlush = 8 * Parts;
  const idx groups = g.groups();
  const uint8_t* w = g.w + panel * g.w_panel + first_column * kGroup;
  double y[Rows][V::kLanes] = {};
  for (idx q = 0; q < groups; ++q) {
    const idx at = (panel * groups + q) * kPanel + first_column;
    const typename V::Reg plain = g.zeros ? V::bytes(g.zeros + at) : V::start(g.zero);
    const Float zero = V::to_float(kBits == 8 ? V::add(plain, V::start(1 << 23)) : plain);
    float scale[V::kLanes];
    V::store_float(scale, V::scale(g.scales, g.scale_type, at));
    const idx end = q * g.group + padded(min_of(g.group, g.k - q * g.group), kUnit);
    for (idx k = q * g.group; k < end; k += kFlush) {
      Float sum[Rows][Parts];
      unroll<Rows>([&](auto r) QK_INLINE { unroll<Parts>([&](auto p) QK_INLINE { sum[r][p] = V::zero_float(); }); });
      const idx units = min_of(kFlush, end - k) / kUnit;
      const float* a = x + k;
      for (idx unit = 0; unit < units; ++unit, w += kLines * kLineBytes, a += kUnit)
        unroll<kLines>([&](auto line) QK_INLINE {
          const typename V::Reg loaded = V::load(w + line * kLineBytes), codes = W::kSigned ? V::flip(loaded) : loaded;
          unroll<kPlanes>([&](auto plane) QK_INLINE {
            unroll<kGroup>([&](auto t) QK_INLINE {
              const int at_k = int(line * kPlanes + plane) * int(kGroup) + int(t);
              const Float value = V::sub_float(V::template value<kBits>(codes, int(t) * 8 + int(plane) * kBits), zero);
              unroll<Rows>([&](auto r) QK_INLINE {
                sum[r][at_k % Parts] = V::fma(V::splat_float(a[r * x_row + at_k]), value, sum[r][at_k % Parts]);
              });
            });
          });
        });
      unroll<Rows>([&](auto r) QK_INLINE {
        for (int half = Parts / 2; half; half /= 2)
          for (int p = 0; p < half; ++p) sum[r][p] = V::add_float(sum[r][p], sum[r][p + half]);
        float whole[V::kLanes];
        V::store_float(whole, sum[r][0]);
        for (int c = 0; c < V::kLanes; ++c) y[r][c] += double(whole[c]) * double(scale[c]);
      });
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float rounded[V::kLanes];
    for (int c = 0; c < V::kLanes; ++c) rounded[c] = float(y[r][c]);
    memcpy(tile + r * kSpan + first_column, rounded, sizeof rounded);
  }
}

template <class V, class W>
struct Floats {
  static constexpr idx kMr = V::kFloatRows, kNr = kPanel;

  static idx rows_at_once(const Int4& g) { return min_of(g.m, max_of((idx(1) << 20) / (g.k_whole() * 4), kMr)); }
  static size_t scratch_bytes(const Int4& g) { return size_t(rows_at_once(g) * g.k_whole() * 4); }

  static void block(const Int4& g, Range m, Range n, void* scratch) {
    const idx at_once = rows_at_once(g), k_whole = g.k_whole();
    float* const x = static_cast<float*>(scratch);
    for (idx m0 = m.begin; m0 < m.end; m0 += at_once) {
      const idx rows = min_of(at_once, m.end - m0);
      for (idx r = 0; r < rows; ++r) {
        memcpy(x + r * k_whole, g.x + (m0 + r) * g.k, size_t(g.k) * 4);
        memset(x + r * k_whole + g.k, 0, size_t(k_whole - g.k) * 4);
      }
      for (idx j = n.begin; j < n.end; j += kSpan)
        for (idx r = 0, height; r < rows; r += height) {
          height = rows - r >= kMr ? kMr : rows - r > 1 ? 2 : 1;
          const idx columns = min_of(kSpan, n.end - j);
          alignas(64) int32_t tile[kMr * kSpan];
          for (idx c = 0; c < columns; c += V::kLanes) {
            const idx panel = (j + c) / kPanel, first = (j + c) % kPanel;
            int32_t* const to = tile + c - first;
            const auto run = height == 1   ? float_panel<V, W, 1, 8>
                             : height == 2 ? float_panel<V, W, 2, 4>
                                           : float_panel<V, W, int(kMr), 4>;
            run(g, x + r * k_whole, k_whole, panel, first, to);
          }
          finish_rows(*g.epilogue, tile, kSpan, m0 + r, height, j, columns);
        }
    }
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
