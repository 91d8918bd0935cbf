// Depthwise convolutions: every channel its own filter, so no product to speak of, and bound by memory. Every GPU.
//
// A thread makes 4 adjacent channels of a pixel. Four taps down a column of the kernel are four words of the image, 4
// channels each: turned over in registers (8 byte permutations), they meet the weights in 4 dp4a.
#pragma once
#include "conv_sm80.h"

namespace qk::cuda {

// Four rows × four bytes → four columns.
QK_DEVICE void turn(const uint32_t (&rows)[4], uint32_t (&columns)[4]) {
  const uint32_t low = ptx::permute(rows[0], rows[1], 0x5140u), high = ptx::permute(rows[0], rows[1], 0x7362u),
                 lower = ptx::permute(rows[2], rows[3], 0x5140u), higher = ptx::permute(rows[2], rows[3], 0x7362u);
  columns[0] = ptx::permute(low, lower, 0x5410u), columns[1] = ptx::permute(low, lower, 0x7632u);
  columns[2] = ptx::permute(high, higher, 0x5410u), columns[3] = ptx::permute(high, higher, 0x7632u);
}

// Four channels of a tap.
QK_DEVICE uint32_t channels4(const Conv& c, const uint8_t* from, int channel) {
  if (!from) return ptx::load(reinterpret_cast<const uint32_t*>(c.pad));
  if (c.image.channels % 4 == 0) return ptx::load(reinterpret_cast<const uint32_t*>(from + channel));
  uint32_t word = 0;
  QK_UNROLL
  for (int b = 0; b < 4; ++b)
    if (channel + b < c.image.channels) word |= uint32_t(ptx::load(from + channel + b)) << 8 * b;
  return word;
}

// Four columns of a row of the result.
QK_DEVICE void finish_four(const Epilogue& e, int64_t i, int64_t j, const int32_t (&sums)[4]) {
  if (e.output >= kS8 && e.output <= kU8 && j + 4 <= e.n && e.out_row % 4 == 0 &&
      (reinterpret_cast<uintptr_t>(e.out) & 3) == 0) {
    uint32_t word = 0;
    QK_UNROLL
    for (int v = 0; v < 4; ++v)
      word |= uint32_t(uint8_t(to_code(e, 0, i, j + v, corrected(e, 0, i, j + v, sums[v])))) << 8 * v;
    return ptx::store(reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(e.out) + i * e.out_row + j), word);
  }
  QK_UNROLL
  for (int v = 0; v < 4; ++v)
    if (j + v < e.n) finish_one(e, 0, i, j + v, sums[v]);
}

template <bool kXSigned, bool kWSigned>
QK_KERNEL(256, 4)
conv_depthwise(QK_ARGUMENT Conv c) {
  const Image& m = c.image;
  const int across = (m.channels + 3) / 4;
  const int64_t at = int64_t(ptx::block_x()) * 256 + ptx::thread(), pixel = at / across;
  if (pixel >= c.epilogue.m) return;
  const int channel = int(at % across) * 4, fours = (m.kernel_h + 3) / 4;
  Pixel here;
  here.set(c, pixel);
  int32_t sums[4] = {0, 0, 0, 0};
  const auto* weights = reinterpret_cast<const Words4*>(c.w) + channel / 4;
  QK_NO_UNROLL
  for (int tap_column = 0; tap_column < m.kernel_w; ++tap_column) QK_NO_UNROLL
  for (int four = 0; four < fours; ++four) {
    uint32_t rows[4], columns[4];
    QK_UNROLL
    for (int r = 0; r < 4; ++r)  // taps behind the kernel meet weights that are 0
      rows[r] = four * 4 + r < m.kernel_h ? channels4(c, here.tap(m, four * 4 + r, tap_column), channel) : 0u;
    turn(rows, columns);
    const Words4 w = ptx::load(weights + (tap_column * fours + four) * across);
    QK_UNROLL
    for (int v = 0; v < 4; ++v) sums[v] = ptx::dp4a<kXSigned, kWSigned>(columns[v], w.x[v], sums[v]);
  }
  finish_four(c.epilogue, pixel, channel, sums);
}

inline void launch_depthwise(const Conv& c, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(c.epilogue.m * ceil_to(c.image.channels, 4), 256));
  shape.threads = 256;
  if (c.x_signed)
    launch(c.w_signed ? conv_depthwise<true, true> : conv_depthwise<true, false>, shape, stream, c, "conv_depthwise");
  else
    launch(c.w_signed ? conv_depthwise<false, true> : conv_depthwise<false, false>, shape, stream, c, "conv_depthwise");
}

}  // namespace qk::cuda
