// The same product where sums shall be as good as float sums can be, for every GPU: compute="float32" (A11), no tensor core.
//
// A CTA multiplies 4 rows of x with a panel of 16 columns; its 8 warps take every eighth 64 k, a lane 16 k of two columns.
// Error, in units of 2⁻²⁴ of Σ|x·w|: four products of pairs in a tree, 2 + 2 roundings; the scale 1; those sums are added
// with their rounding errors beside them (two-sum), 1 for all of k; four lanes 2, eight warps 3. 11 of the 16 of the rule,
// at any k. Any single running sum would need more, so does a tensor core, which cuts off what it aligns.
#pragma once
#include "experts.h"
#include "float_epilogue.h"
#include "launch.h"

namespace qk::cuda {

template <Output kType>
QK_DEVICE float float_of(const void* x, int64_t at) {
  if constexpr (kType == kF32) return ptx::load(static_cast<const float*>(x) + at);
  else if constexpr (kType == kF16) return half_to_float(ptx::load(static_cast<const uint16_t*>(x) + at));
  else return bfloat_to_float(ptx::load(static_cast<const uint16_t*>(x) + at));
}

// A sum and what its roundings have lost (Knuth's two-sum).
struct Kept {
  float sum = 0.0f, lost = 0.0f;
  QK_DEVICE void add(float x) {
    const float total = sum + x, of_x = total - sum;
    lost = lost + ((sum - (total - of_x)) + (x - of_x));
    sum = total;
  }
};

constexpr int kFewRows = 4;

template <Output kType, int kBits>
QK_KERNEL(256, 1)
few_rows(QK_ARGUMENT WeightProduct p) {
  const uint32_t shared = ptx::shared_memory();
  const int lane = ptx::thread() & 31, warp = ptx::thread() >> 5, g = lane >> 2, q = lane & 3;
  const int64_t panel = ptx::block_x(), block = panel / 4, chunks = (p.w.k + 63) / 64;
  const RowRange rows = rows_of<kFewRows>(p, ptx::block_y());
  if (rows.first >= rows.end) return;
  const int64_t first_row = rows.first, units = p.w.group / 32;
  const int64_t pitch = p.x_pitch / (kType == kF32 ? 4 : 2),
                scale_at = rows.expert * places(p.w) + g * 8 + panel % 4 * 2;
  Kept y[kFewRows][2];
  QK_NO_UNROLL
  for (int64_t chunk = warp; chunk < chunks; chunk += 8) {
    const uint8_t* codes = p.w.codes + rows.expert * code_bytes(p.w) +
                           ((block * chunks + chunk) * 4 + panel % 4) * (128 * kBits) + lane * 16;
    QK_NO_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t from = chunk * 64 + half * 32, group = (chunk * 2 + half) / units;
      if (from >= p.w.k) break;
      uint32_t words[4];  // of 4 bits two
      if constexpr (kBits == 4) {
        const auto two = ptx::load(reinterpret_cast<const Words2*>(codes + half * 8));
        words[0] = two.x[0], words[1] = two.x[1];
      } else {
        const auto four = ptx::load(reinterpret_cast<const Words4*>(codes + half * 512));
        QK_UNROLL
        for (int u = 0; u < 4; ++u) words[u] = four.x[u];
      }
      const int64_t at = (block * p.w.groups + group) * 64 + scale_at;
      QK_UNROLL
      for (int column = 0; column < 2; ++column) {
        const int32_t zero = p.w.zeros ? int32_t(ptx::load(p.w.zeros + at + column)) : p.w.zero;
        const float scale = p.w.scale_type == kF32   ? float_of<kF32>(p.w.scales, at + column)
                            : p.w.scale_type == kF16 ? float_of<kF16>(p.w.scales, at + column)
                                                     : float_of<kBf16>(p.w.scales, at + column);
        float w[8];  // of k 16·step + 2q, + 1, + 8, + 9
        QK_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int step = i / 4, place = i % 2 * 2 + i / 2 % 2;  // in memory 2q, 2q + 8, 2q + 1, 2q + 9
          const uint32_t code =
              kBits == 4 ? words[step] >> (8 * place + 4 * column) & 15 : words[step * 2 + column] >> 8 * place & 255;
          w[i] = float(int32_t(code) - zero);
        }
        QK_UNROLL
        for (int row = 0; row < kFewRows; ++row) {
          float pairs[4];
          QK_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int64_t k = from + i / 2 * 16 + i % 2 * 8 + 2 * q;
            const bool there = first_row + row < rows.end;
            const int64_t x = (first_row + row) * pitch + k;
            const float one = there && k < p.w.k ? float_of<kType>(p.x, x) : 0.0f;
            const float other = there && k + 1 < p.w.k ? float_of<kType>(p.x, x + 1) : 0.0f;
            pairs[i] = ptx::fused(other, w[2 * i + 1], one * w[2 * i]);
          }
          y[row][column].add(((pairs[0] + pairs[1]) + (pairs[2] + pairs[3])) * scale);
        }
      }
    }
  }
  QK_UNROLL
  for (int row = 0; row < kFewRows; ++row) QK_UNROLL
  for (int column = 0; column < 2; ++column) {
    float total = y[row][column].sum + y[row][column].lost;
    QK_UNROLL
    for (int step = 1; step < 4; step *= 2) total = total + as_float(ptx::shuffle(bits_of(total), lane ^ step));
    if (q == 0) ptx::store_shared(shared + ((warp * kFewRows + row) * 16 + g + 8 * column) * 4, total);
  }
  ptx::cta_sync();
  const int row = ptx::thread() / 4, column = ptx::thread() % 4 * 4;
  if (row >= kFewRows) return;
  float total[8][4];
  QK_UNROLL
  for (int of = 0; of < 8; ++of) {
    const auto words = ptx::load_shared<Words4>(shared + ((of * kFewRows + row) * 16 + column) * 4);
    memcpy(total[of], &words, 16);
  }
  QK_UNROLL
  for (int step = 1; step < 8; step *= 2) QK_UNROLL
  for (int of = 0; of < 8; of += 2 * step) QK_UNROLL
  for (int v = 0; v < 4; ++v) total[of][v] = total[of][v] + total[of + step][v];
  deliver(p, epilogue_of(p, rows), 0, first_row + row, panel * 16 + column, total[0]);
}

template <Output kType>
void launch_few_rows_of(const WeightProduct& p, const Shape& shape, Stream stream) {
  launch(p.w.bits == 4 ? few_rows<kType, 4> : few_rows<kType, 8>, shape, stream, p, "few_rows");
}

inline void launch_few_rows(const WeightProduct& p, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(p.w.n, 16));
  shape.grid_y = row_tiles(p, kFewRows);
  shape.threads = 256;
  shape.shared_bytes = 8 * kFewRows * 16 * 4;
  if (p.x_type == kF32) launch_few_rows_of<kF32>(p, shape, stream);
  else if (p.x_type == kF16) launch_few_rows_of<kF16>(p, shape, stream);
  else launch_few_rows_of<kBf16>(p, shape, stream);
}

}  // namespace qk::cuda
