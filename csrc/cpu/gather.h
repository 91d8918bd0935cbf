// Windows of an image copied side by side: rows of A for a band of output pixels. Compiled for the baseline and once
// more for 64-byte vectors; the copies are plain memcpy of constant sizes, which become one move each.
//
// Tap row by tap row, pixel by pixel inside: then neighbouring pixels differ by two constants, and edges and rows outside
// of the image are found once a line, not once a pixel.
// Why not the library's memcpy: the call costs more than most of these copies. Why not one wide move for 21 bytes, whose
// rest the next kernel row overwrites: 7×7 of 3 channels takes 3 % longer than with two moves.
#pragma once
#include <string.h>

#include "conv.h"

namespace qk {
namespace QK_ISA {
namespace {

// n bytes in pieces of at most kWide, the last of which may overlap the one before.
template <idx kWide>
inline void copy(uint8_t* dst, const uint8_t* src, idx n) {
  if (n >= kWide) {
    idx i = 0;
    for (; i + kWide <= n; i += kWide) memcpy(dst + i, src + i, kWide);
    if (i < n) memcpy(dst + n - kWide, src + n - kWide, kWide);
  } else if constexpr (kWide > 4) {
    copy<kWide / 2>(dst, src, n);
  } else {
    for (idx i = 0; i < n; ++i) dst[i] = src[i];
  }
}

// The same n bytes for `count` pixels, whose distances are constant: the size is looked at once.
template <idx kWide>
inline void copy_each(uint8_t* dst, idx dst_step, const uint8_t* src, idx src_step, idx count, idx n) {
  if (n > 2 * kWide) {
    for (idx i = 0; i < count; ++i, dst += dst_step, src += src_step) copy<kWide>(dst, src, n);
  } else if (n >= kWide) {  // two pieces, which may overlap
    for (idx i = 0; i < count; ++i, dst += dst_step, src += src_step) {
      memcpy(dst, src, kWide);
      memcpy(dst + n - kWide, src + n - kWide, kWide);
    }
  } else if constexpr (kWide > 4) {
    copy_each<kWide / 2>(dst, dst_step, src, src_step, count, n);
  } else {
    for (idx i = 0; i < count; ++i, dst += dst_step, src += src_step)
      for (idx t = 0; t < n; ++t) dst[t] = src[t];
  }
}

// The taps of one kernel row of one pixel, whose leftmost column is `left`: kernel width × channels bytes.
template <idx kWide>
inline void gather_edge(const ConvJob& job, idx c, const uint8_t* row, idx left, uint8_t* dst) {
  const ConvShape& s = job.shape;
  for (idx t = 0; t < s.kernel[2]; ++t, left += s.dilation[2], dst += c)
    if (left >= 0 && left < s.size[2]) copy<kWide>(dst, row + left * job.x_step[3], c);
    else memset(dst, uint8_t(job.x_zero), size_t(c));
}

// `count` pixels of one output line, from the one whose leftmost column is `left`.
template <idx kWide>
void gather_line(const ConvJob& job, const ConvMatrix& m, const uint8_t* image, const idx* corner, idx count,
                 uint8_t* dst, idx dst_row) {
  const ConvShape& s = job.shape;
  const idx c = m.channels, width = s.kernel[2] * c, left = corner[2], step = s.stride[2];
  const idx room = s.size[2] - ((s.kernel[2] - 1) * s.dilation[2] + 1) - left;  // columns to go, to the last whole one
  const idx first = min_of(max_of(ceil_div(-left, step), 0), count);
  const idx last = room < 0 ? first : max_of(min_of(room / step + 1, count), first);
  const bool one_run = s.dilation[2] == 1 && job.x_step[3] == c;
  const idx pieces = one_run ? 1 : s.kernel[2], piece = one_run ? width : c;
  for (idx kd = 0; kd < s.kernel[0]; ++kd)
    for (idx kh = 0; kh < s.kernel[1]; ++kh, dst += width) {
      const idx d = corner[0] + kd * s.dilation[0], h = corner[1] + kh * s.dilation[1];
      if (d < 0 || d >= s.size[0] || h < 0 || h >= s.size[1]) {
        for (idx i = 0; i < count; ++i) memset(dst + i * dst_row, uint8_t(job.x_zero), size_t(width));
        continue;
      }
      const uint8_t* const row = image + d * job.x_step[1] + h * job.x_step[2];
      for (idx i = 0; i < first; ++i) gather_edge<kWide>(job, c, row, left + i * step, dst + i * dst_row);
      for (idx t = 0; t < pieces; ++t) {
        const uint8_t* src = row + (left + first * step + t * s.dilation[2]) * job.x_step[3];
        uint8_t* to = dst + first * dst_row + t * c;
        copy_each<kWide>(to, dst_row, src, step * job.x_step[3], last - first, piece);
      }
      for (idx i = last; i < count; ++i) gather_edge<kWide>(job, c, row, left + i * step, dst + i * dst_row);
    }
  if (m.k_whole > m.k)
    for (idx i = 0; i < count; ++i) memset(dst + i * dst_row, uint8_t(job.x_zero), size_t(m.k_whole - m.k));
}

template <idx kWide>
void gather_pixels(const ConvJob& job, const ConvMatrix& m, Range pixels, uint8_t* dst, idx dst_row) {
  const ConvShape& s = job.shape;
  for (idx i = pixels.begin; i < pixels.end;) {
    idx at[3], index = i;
    for (int axis = 2; axis >= 0; --axis) at[axis] = index % s.out[axis], index /= s.out[axis];
    const idx count = min_of(s.out[2] - at[2], pixels.end - i);
    idx corner[3];
    for (int axis = 0; axis < 3; ++axis) corner[axis] = at[axis] * s.stride[axis] - s.before[axis];
    gather_line<kWide>(job, m, job.x + index * job.x_step[0] + m.first_channel, corner, count, dst, dst_row);
    i += count, dst += count * dst_row;
  }
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
