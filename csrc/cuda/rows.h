// The list of GPU products of this build, and one product on one of them.
#pragma once
#include "calls.h"

namespace qk::cuda {

struct Row {
  const char* tile;  // rows × columns of the result
  const char* isa;
  int rows, columns;
  bool swapped;  // the weights are the instruction's A operand
  int step;      // bytes of k a stage
  int ctas_an_sm;
  int first_arch, last_arch;  // compute capabilities that run it: 75, 80 … 999, 90 … 90
  void (*run)(const Gemm&, const Epilogue&, Stream);
};

void large_sm75(const Gemm&, const Epilogue&, Stream);
void large_sm80(const Gemm&, const Epilogue&, Stream);
void small_sm80(const Gemm&, const Epilogue&, Stream);
void pair_sm90a(const Gemm&, const Epilogue&, Stream);
void single_sm90a(const Gemm&, const Epilogue&, Stream);
void few_sm90a(const Gemm&, const Epilogue&, Stream);
void least_sm90a(const Gemm&, const Epilogue&, Stream);
void any_dp4a(const Gemm&, const Epilogue&, Stream);

struct RowList {
  const Row* rows;
  int count;
};
RowList all_rows();

// Parts of k: as many as fill the GPU, none shorter than four stages. Sums of integers are the same in any order.
int splits_of(const Row& row, const Gemm& g);

// Bytes of scratch that run_gemm needs; 0 for most.
int64_t workspace_bytes(const Row& row, const Gemm& g, const Epilogue& e);

void run_gemm(const Row& row, Gemm g, Epilogue e, void* workspace, Stream stream);

// ---------------------------------------------------------------- what is no product
void finish_parts(const int32_t* sums, int64_t batches, const Epilogue& e, Stream stream);
void rearrange_operand(const RearrangeArgs& args, Stream stream);
void sum_operand_rows(const SumsArgs& args, Stream stream);
void find_extremes(const ExtremesArgs& args, Stream stream);
void scales_of_extremes(const FoundArgs& args, Stream stream);
void prepare_scales(const PrepareArgs& args, Stream stream);
void add_wide(const WidenArgs& args, Stream stream);
void quantize_codes(const QuantizeArgs& args, Stream stream);
void dequantize_codes(const DequantizeArgs& args, Stream stream);
void requantize_sums(const RequantizeArgs& args, Stream stream);
void quantize_ranges(const DynamicArgs& args, Stream stream);
void pack_codes(const PackArgs& args, Stream stream);
void find_not_finite(const FiniteArgs& args, Stream stream);

}  // namespace qk::cuda
