// Convolution as a matrix product whose A is gathered from the image, a band of output pixels at a time (implicit GEMM).
#pragma once
#include "../epilogue.h"
#include "../kernel.h"

namespace qk {

struct ConvShape {  // three spatial axes: depth, height, width
  idx batch, size[3], channels, filters, kernel[3], stride[3], dilation[3], before[3], out[3], groups;
};

static inline bool is_flat(const ConvShape& s) {  // without depth
  return s.kernel[0] == 1 && s.size[0] == 1 && s.out[0] == 1 && s.before[0] == 0;
}

// One convolution, checked and ready. Weights are `matrices` merged groups in n16k4, one after the other; k runs over
// taps and, innermost, the channels of the merged groups.
struct ConvJob {
  ConvShape shape;
  const uint8_t* x;
  idx x_step[4];  // bytes between images, depths, rows, pixels; channels are adjacent
  int32_t x_zero;
  const uint8_t* w;
  const int32_t* w_sums;
  idx matrices;
  const int32_t* w_zero;     // of every filter, or null
  const Epilogue* epilogue;  // rows are output pixels, in order
  idx l1_bytes, l2_bytes;
};

struct ConvMatrix {  // one of the merged groups
  idx channels, first_channel, filters, first_filter, k, k_whole;
};

// Rows of A for output pixels, dst_row bytes apart: windows, then the image's zero point up to k_whole.
using Gather = void (*)(const ConvJob&, const ConvMatrix&, Range pixels, uint8_t* dst, idx dst_row);

// One line of the registry: a depthwise convolution (kernel depth 1). job.w: layout c4t4, w_sums: of every channel.
struct DepthwiseRow {
  const char *name, *types, *isa;
  bool a_signed, w_signed;
  double gops;  // nominal rate of one core, counting the taps that are there
  size_t (*scratch_bytes)(const ConvJob&);
  // Output rows lines.begin … of all images, one below the other, on the calling thread. scratch is 64-byte aligned.
  void (*block)(const ConvJob&, Range lines, void* scratch);
};

struct DepthwiseList {
  const DepthwiseRow* rows;
  int count;
};

DepthwiseList depthwise_rows();  // every one of this build
bool run_depthwise(const DepthwiseRow& row, const ConvJob& job, int threads, bool forced);

// Convolutions that read the image without windows side by side: `run_conv` hands to these what they take, where a row of
// `isa` was asked for and the CPU runs `needs`. job.w is n16k4, the epilogue's bias holds the image's zero point.
struct DirectRow {
  const char *isa, *needs;
  double gops;  // nominal rate of one core
  bool a_signed, w_signed;
  bool (*takes)(const ConvJob&);
  size_t (*scratch_bytes)(const ConvJob&);                    // 0 for shapes that it never takes
  void (*block)(const ConvJob&, Range lines, void* scratch);  // as of DepthwiseRow
};

struct DirectList {
  const DirectRow* rows;
  int count;
};

DirectList direct_rows();  // every one of this build

// As `run` of plan.h.
bool run_conv(const KernelRow& row, const ConvJob& job, int threads, bool forced);

}  // namespace qk
