// The list of convolutions of this build.
#pragma once
#include "conv.h"

namespace qk::cuda {

struct ConvRow {
  const char* tile;  // pixels × filters × adjacent channels
  const char* isa;
  const char* kind;  // "chunks": channels of a group are a multiple of 16; "bytes": any; "depthwise"
  int first_arch, last_arch;
  void (*run)(const Conv&, Stream);
};

void conv_wide(const Conv&, Stream);
void conv_narrow(const Conv&, Stream);
void conv_bytes(const Conv&, Stream);
void conv_channels(const Conv&, Stream);

constexpr ConvRow kConvRows[] = {
    {"128x128x16", "cuda_sm80", "chunks", 80, 999, conv_wide},
    {"128x64x16", "cuda_sm80", "chunks", 80, 999, conv_narrow},
    {"128x64x1", "cuda_sm80", "bytes", 80, 999, conv_bytes},
    {"1x4", "cuda_dp4a", "depthwise", 75, 999, conv_channels},
};
constexpr int kConvRowCount = sizeof kConvRows / sizeof kConvRows[0];

}  // namespace qk::cuda
