// The kernels that every GPU runs: dp4a, operands on their way, elementwise operations.
#include "elementwise.h"
#include "extremes.h"
#include "finish.h"
#include "gemm_dp4a.h"
#include "prepare.h"
#include "ranges.h"
#include "rearrange.h"
#include "rows.h"

namespace qk::cuda {

void any_dp4a(const Gemm& g, const Epilogue& e, Stream stream) { launch_dp4a(g, e, stream, "gemm_64x64_dp4a"); }

void finish_parts(const int32_t* sums, int64_t batches, const Epilogue& e, Stream stream) {
  launch_finish(sums, batches, e, stream);
}
void rearrange_operand(const RearrangeArgs& args, Stream stream) { launch_rearrange(args, stream); }
void find_extremes(const ExtremesArgs& args, Stream stream) { launch_extremes(args, stream); }
void scales_of_extremes(const FoundArgs& args, Stream stream) { launch_found(args, stream); }
void prepare_scales(const PrepareArgs& args, Stream stream) { launch_prepare(args, stream); }
void add_wide(const WidenArgs& args, Stream stream) { launch_widen(args, stream); }
void sum_operand_rows(const SumsArgs& args, Stream stream) { launch_sums(args, stream); }

namespace {

template <Output kType>
void quantize_of(const QuantizeArgs& args, Stream stream) {
  const Shape shape = flat_shape(args.rows * args.inner);
  launch(args.out_bytes == 1 ? quantize_kernel<kType, uint8_t> : quantize_kernel<kType, uint16_t>, shape, stream, args,
         "quantize");
}

template <class Code>
void dequantize_of(const DequantizeArgs& args, Stream stream) {
  const auto kernel = args.out_type == kF32   ? dequantize_kernel<Code, kF32>
                      : args.out_type == kF16 ? dequantize_kernel<Code, kF16>
                                              : dequantize_kernel<Code, kBf16>;
  launch(kernel, flat_shape(args.rows * args.inner), stream, args, "dequantize");
}

}  // namespace

void quantize_codes(const QuantizeArgs& args, Stream stream) {
  if (args.x_type == kF32) quantize_of<kF32>(args, stream);
  else if (args.x_type == kF16) quantize_of<kF16>(args, stream);
  else quantize_of<kBf16>(args, stream);
}

void dequantize_codes(const DequantizeArgs& args, Stream stream) {
  if (args.code_bytes == 1) args.is_signed ? dequantize_of<int8_t>(args, stream) : dequantize_of<uint8_t>(args, stream);
  else args.is_signed ? dequantize_of<int16_t>(args, stream) : dequantize_of<uint16_t>(args, stream);
}

void requantize_sums(const RequantizeArgs& args, Stream stream) {
  launch(args.out_bytes == 1 ? requantize_kernel<uint8_t> : requantize_kernel<uint16_t>,
         flat_shape(args.rows * args.inner), stream, args, "requantize");
}

void quantize_ranges(const DynamicArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(args.rows * ceil_to(args.inner, args.group));
  shape.threads = kRangeThreads;
  shape.shared_bytes = kRangeThreads / 32 * 4;
  launch(args.x_type == kF32   ? dynamic_kernel<kF32>
         : args.x_type == kF16 ? dynamic_kernel<kF16>
                               : dynamic_kernel<kBf16>,
         shape, stream, args, "dynamic_quantize");
}

}  // namespace qk::cuda
