// The nouns of a convolution of bytes on a GPU: images (batch, height, width, channels), adjacent (docs/arithmetic.md A12).
#pragma once
#include "calls.h"

namespace qk::cuda {

struct
    Image {  // of output pixel o, tap t of an axis: o·stride + t·dilation − before; outside of it stands the zero point
  int32_t batch, height, width, channels;
  int32_t filters, groups;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, before_h, before_w, out_h, out_w;
};

struct Conv {
  Image image;
  const uint8_t* x;
  // Products: (filters, pitch), k over taps and channels of the group, 16-byte aligned. Depthwise: taps down a column of the
  // kernel four by four, [kernel_w][⌈kernel_h/4⌉][channels padded to 4][4].
  const uint8_t* w;
  int64_t w_pitch;
  const uint8_t* pad;  // 16 bytes of the zero point, 16-byte aligned
  bool x_signed, w_signed;
  Epilogue epilogue;  // rows are pixels, columns filters
};

}  // namespace qk::cuda
