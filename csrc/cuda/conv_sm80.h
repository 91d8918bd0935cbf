// Convolutions as products without their matrix (implicit GEMM), by mma.m16n8k32: gemm_sm80.h with rows that are gathered.
//
// Row = output pixel, k = (tap, channel). Where channels of a group are a multiple of 16, a chunk of 16 bytes lies in one
// pixel of the image: cp.async brings it from there, or from 16 bytes of the zero point where the tap falls outside, so
// that padding costs an address and no branch. Other images (a stem of 3 channels, narrow groups) come byte by byte through
// registers: dense in k, 147 of a 7 × 7 stem, and not padded to 784.
// Groups are the grid's third axis: columns of their own, side by side in the result.
//
// Why not corrections at the border afterwards, in place of reading zero points: 9 cases of a 3 × 3 kernel, and as many
// sums of weights for each filter, against a pointer.
#pragma once
#include "conv.h"
#include "gemm_sm80.h"

namespace qk::cuda {

using Wide80 = Large80;                                  // 128 pixels × 128 filters
using Narrow80 = Tile80<128, 64, 32, 32, 64, 4, false>;  // × 64

// Where a chunk of k is: tap and channel, moved along by what a step has.
struct Tap {
  int channel, row, column;  // of the group; of the kernel

  QK_DEVICE void move(const Image& image, int depth, int by) {
    channel += by;
    while (channel >= depth) {
      channel -= depth;
      if (++column == image.kernel_w) column = 0, ++row;
    }
  }
};

// One output pixel: where its first tap falls.
struct Pixel {
  const uint8_t* image;
  int row, column;
  bool there;

  QK_DEVICE void set(const Conv& c, int64_t pixel) {
    const Image& m = c.image;
    const int64_t each = int64_t(m.out_h) * m.out_w, n = pixel / each;
    const int at = int(pixel % each);
    there = n < m.batch;
    image = c.x + (there ? n * m.height * m.width * m.channels : 0);
    row = at / m.out_w * m.stride_h - m.before_h;
    column = at % m.out_w * m.stride_w - m.before_w;
  }
  // The channels of a tap, or null where it falls outside of the image.
  QK_DEVICE const uint8_t* tap(const Image& m, int tap_row, int tap_column) const {
    const int y = row + tap_row * m.dilation_h, x = column + tap_column * m.dilation_w;
    const bool inside = uint32_t(y) < uint32_t(m.height) && uint32_t(x) < uint32_t(m.width);
    return inside ? image + (int64_t(y) * m.width + x) * m.channels : nullptr;
  }
};

// One thread's part of the gathered operand: a chunk of the step, of every 64th row.
template <class Tile, bool kWhole>
struct PixelLoader {
  static constexpr int kChunks = Tile::kStep / 16, kRows = Tile::kThreads / kChunks, kEach = Tile::kRows / kRows;
  static_assert(kEach * kRows == Tile::kRows, "the same for every thread");
  const Conv& c;
  Pixel pixels[kEach];
  Tap tap{0, 0, 0};
  int depth, first, left;  // channels of a group, the group's first; k from the chunk on

  QK_DEVICE PixelLoader(const Conv& conv, int64_t row, int group)
      : c(conv), depth(conv.image.channels / conv.image.groups), first(group * depth) {
    const int chunk = ptx::thread() % kChunks;
    left = depth * c.image.kernel_h * c.image.kernel_w - chunk * 16;
    tap.move(c.image, depth, chunk * 16);
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) pixels[i].set(c, row + ptx::thread() / kChunks + i * kRows);
  }
  QK_DEVICE void load(uint32_t stage) {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const uint32_t to = stage + chunk_at<Tile::kStep>(ptx::thread() / kChunks + i * kRows, ptx::thread() % kChunks);
      if constexpr (kWhole) {
        const uint8_t* from = pixels[i].tap(c.image, tap.row, tap.column);
        ptx::cp_async_16(to, from ? from + first + tap.channel : c.pad, pixels[i].there && left > 0 ? 16 : 0);
      } else {
        ptx::store_shared(to, bytes(pixels[i]));
      }
    }
    tap.move(c.image, depth, Tile::kStep);
    left -= Tile::kStep;
  }
  // 16 of k, tap by tap.
  QK_DEVICE Words4 bytes(const Pixel& pixel) const {
    Words4 words = {{0, 0, 0, 0}};
    if (!pixel.there) return words;
    Tap at = tap;
    const uint8_t* from = pixel.tap(c.image, at.row, at.column);
    QK_UNROLL
    for (int b = 0; b < 16; ++b) {
      if (b >= left) break;
      words.x[b / 4] |= uint32_t(ptx::load(from ? from + first + at.channel : c.pad)) << b % 4 * 8;
      if (++at.channel == depth) {
        at.channel = 0;
        if (++at.column == c.image.kernel_w) at.column = 0, ++at.row;
        from = pixel.tap(c.image, at.row, at.column);
      }
    }
    return words;
  }
};

template <class Tile, bool kWhole, bool kXSigned, bool kWSigned>
QK_KERNEL(Tile::kThreads, kWhole ? 2 : 1)
conv_sm80(QK_ARGUMENT Conv c) {
  const int group = ptx::block_z(), filters = c.image.filters / c.image.groups;
  const int depth = c.image.channels / c.image.groups, k = depth * c.image.kernel_h * c.image.kernel_w;
  const int64_t row = int64_t(ptx::block_x()) * Tile::kRows, column = int64_t(ptx::block_y()) * Tile::kColumns;
  const Part part = {0, k, (k + Tile::kStep - 1) / Tile::kStep};
  PixelLoader<Tile, kWhole> a(c, row, group);
  Loader<Tile::kColumns, Tile::kStep, Tile::kThreads> w(c.w + group * filters * c.w_pitch, c.w_pitch, column, filters,
                                                        0, k);
  multiply_80<Tile, kXSigned, kWSigned>(a, w, part, c.epilogue, 0, row, group * filters + column,
                                        int64_t(group + 1) * filters);
}

template <class Tile, bool kWhole>
void launch_conv_of(const Conv& c, Stream stream, const char* name) {
  Shape shape;
  shape.grid_x = int(ceil_to(c.epilogue.m, Tile::kRows));
  shape.grid_y = int(ceil_to(c.image.filters / c.image.groups, Tile::kColumns));
  shape.grid_z = c.image.groups;
  shape.threads = Tile::kThreads;
  shape.shared_bytes = Tile::kSharedBytes;
  if (c.x_signed)
    launch(c.w_signed ? conv_sm80<Tile, kWhole, true, true> : conv_sm80<Tile, kWhole, true, false>, shape, stream, c,
           name);
  else
    launch(c.w_signed ? conv_sm80<Tile, kWhole, false, true> : conv_sm80<Tile, kWhole, false, false>, shape, stream, c,
           name);
}

}  // namespace qk::cuda
