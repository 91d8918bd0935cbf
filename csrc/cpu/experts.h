// A mixture of experts: rows sorted by expert, each against the weights of its expert, all in one call.
#pragma once
#include "int4.h"
#include "plan.h"

namespace qk {

struct Expert {
  idx first, rows;       // of x
  const KernelRow* row;  // bytes, n16k4; or null
  Gemm bytes;            // what belongs to the weights, and w_zero
  const float* w_scale;
  const Int4Row* low;  // else
  Int4 groups;
  const float* bias;  // n floats, or null
};

// x: float32 (m, k), adjacent: quantized (A8) on the way, or taken as it is (A11) by rows `of_floats`. Of e, a_scale,
// w_scale and bias are not looked at. Experts without rows have no row. False when memory could not be had.
bool run_experts(const Expert* experts, idx count, idx m, idx n, idx k, const Epilogue& e, const float* x, int threads,
                 bool forced);

}  // namespace qk
