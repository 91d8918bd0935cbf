// Rows of x are quantized (A8) by all threads into the caller's scratch, as many as fit the cache that holds them
// until they are multiplied; then their product runs, split as any other. So a row is quantized once, whatever the
// blocks of the product are: within the blocks it would be once for each block of columns, 13 times at k = n = 4096.
#include "linear.h"

#include <string.h>

#include "elements.h"
#include "features.h"
#include "threads.h"

namespace qk {
namespace {

constexpr idx kCodesBytes = 4 << 20, kLeastRows = 256;

const ElementwiseRow* quantizer() {
  for (int i = 0; i < elementwise_count(); ++i) {
    const ElementwiseRow& row = elementwise_row(i);
    if (strcmp(row.op, "dynamic_quantize") == 0 && strcmp(row.types, "f32s8") == 0 && cpu_runs(row.isa)) return &row;
  }
  return nullptr;
}

// One zero point for all of A belongs to the columns, −za · Σ_k (w − zw): into their bias with it, mod 2³², so that the
// tiles have one term less. `room` for n sums, or null: as it was.
void fold_zero(Gemm& g, Epilogue& e, int32_t* room) {
  if (!g.a_zero || e.bias_row || !room) return;
  for (idx i = 1; i < g.m; ++i)
    if (g.a_zero[i] != g.a_zero[0]) return;
  const uint32_t za = uint32_t(g.a_zero[0]), k = uint32_t(g.k);
  for (idx j = 0; j < g.n; ++j) {
    const uint32_t of_weights = uint32_t(g.w_sums[j]) - (g.w_zero ? k * uint32_t(g.w_zero[j]) : 0u);
    room[j] = int32_t((e.bias ? uint32_t(e.bias[j]) : 0u) - za * of_weights);
  }
  g.a_zero = nullptr;
  e.bias = room;
}

}  // namespace

idx quantized_rows(idx m, idx k) { return ceil_div(m, ceil_div(m, max_of(kCodesBytes / k, kLeastRows))); }

// float scale, int32 zero and the codes of each row
size_t quantized_rows_bytes(idx m, idx k) { return size_t(quantized_rows(m, k) * (k + 8) + 64); }

bool in_quantized_rows(const float* x, idx m, idx k, const Epilogue& e, int threads, bool forced, MultiplyRows multiply,
                       void* context) {
  static const ElementwiseRow* const quantize = quantizer();
  const idx rows = quantized_rows(m, k);
  uint8_t* const scratch = static_cast<uint8_t*>(thread_scratch(kCodesScratch, quantized_rows_bytes(m, k)));
  if (!scratch) return false;
  float* const scale = reinterpret_cast<float*>(scratch);
  uint8_t* const codes = scratch + padded(rows * 8, 64);
  bool good = true;
  for (idx i = 0; i < m && good; i += rows) {
    Elementwise part = {};
    part.rows = min_of(rows, m - i), part.inner = k;
    part.in = x + i * k, part.out = codes;
    part.at = {part.rows, 1, 1, k};
    part.low = -127, part.high = 127;
    part.found_scale = scale, part.found_zero = reinterpret_cast<int32_t*>(scale + rows);
    run(*quantize, part, threads, forced);
    Epilogue mine = epilogue_from(e, i);
    mine.a_scale = scale, mine.a_scale_step = 1;
    good = multiply(context, codes, part.rows, mine);
  }
  return good;
}

namespace {

struct Product {
  const KernelRow& row;
  Job job;
  int threads;
  bool forced;
};

bool multiply_rows(void* context, const uint8_t* codes, idx rows, const Epilogue& e) {
  Product& p = *static_cast<Product*>(context);
  Gemm& g = p.job.one;
  g.m = rows, g.epilogue = &e;
  g.a = codes, g.a_row = g.k, g.a_col = 1;
  return run(p.row, p.job, p.threads, p.forced);
}

}  // namespace

bool run_linear(const KernelRow& row, const Gemm& g, const Epilogue& e, const float* x, int threads, bool forced) {
  Product p{row, {}, threads, forced};
  p.job.one = g;
  p.job.one.epilogue = &e;
  p.job.a_zero_step = p.job.w_zero_step = 4;
  if (x) return in_quantized_rows(x, g.m, g.k, e, threads, forced, multiply_rows, &p);
  Epilogue folded = e;
  fold_zero(p.job.one, folded, static_cast<int32_t*>(thread_scratch(kCodesScratch, size_t(g.n) * 4)));
  p.job.one.epilogue = &folded;
  return run(row, p.job, threads, forced);
}

}  // namespace qk
