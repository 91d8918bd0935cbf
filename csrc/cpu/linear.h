// A product and its epilogue; activations that are real numbers are quantized on the way.
#pragma once
#include "../epilogue.h"
#include "plan.h"

namespace qk {

// x: float32 (m, k), adjacent, or null where g.a holds codes. Of x, g.a and e.a_scale are not looked at.
// False when memory for the scratch could not be had; out may then be partly written.
bool run_linear(const KernelRow& row, const Gemm& g, const Epilogue& e, const float* x, int threads, bool forced);

// multiply(context, codes (rows, k), rows, their epilogue) for so many rows of x at a time, quantized to s8 (A8).
using MultiplyRows = bool (*)(void* context, const uint8_t* codes, idx rows, const Epilogue& e);
bool in_quantized_rows(const float* x, idx m, idx k, const Epilogue& e, int threads, bool forced, MultiplyRows multiply,
                       void* context);
idx quantized_rows(idx m, idx k);           // how many at a time
size_t quantized_rows_bytes(idx m, idx k);  // of the caller's scratch that this takes

}  // namespace qk
