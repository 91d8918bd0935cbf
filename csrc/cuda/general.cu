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
  const auto kernel = args.out_bits == 8    ? quantize_kernel<kType, 8>
                      : args.out_bits == 16 ? quantize_kernel<kType, 16>
                      : args.out_bits == 4  ? quantize_kernel<kType, 4>
                                            : quantize_kernel<kType, 2>;
  launch(kernel, flat_shape(args.rows * args.inner), stream, args, "quantize");
}

template <int kBits>
void dequantize_of(const DequantizeArgs& args, Stream stream) {
  const auto kernel = args.out_type == kF32   ? dequantize_kernel<kBits, kF32>
                      : args.out_type == kF16 ? dequantize_kernel<kBits, kF16>
                                              : dequantize_kernel<kBits, kBf16>;
  launch(kernel, flat_shape(args.rows * args.inner), stream, args, "dequantize");
}

template <int kBits>
void dynamic_of(const DynamicArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(args.rows * ceil_to(args.inner, args.group));
  shape.threads = kRangeThreads;
  shape.shared_bytes = kRangeThreads / 32 * 4;
  launch(args.x_type == kF32   ? dynamic_kernel<kF32, kBits>
         : args.x_type == kF16 ? dynamic_kernel<kF16, kBits>
                               : dynamic_kernel<kBf16, kBits>,
         shape, stream, args, "dynamic_quantize");
}

}  // namespace

void quantize_codes(const QuantizeArgs& args, Stream stream) {
  if (args.x_type == kF32) quantize_of<kF32>(args, stream);
  else if (args.x_type == kF16) quantize_of<kF16>(args, stream);
  else quantize_of<kBf16>(args, stream);
}

void dequantize_codes(const DequantizeArgs& args, Stream stream) {
  if (args.code_bits == 8) dequantize_of<8>(args, stream);
  else if (args.code_bits == 16) dequantize_of<16>(args, stream);
  else if (args.code_bits == 4) dequantize_of<4>(args, stream);
  else dequantize_of<2>(args, stream);
}

void requantize_sums(const RequantizeArgs& args, Stream stream) {
  launch(args.out_bits == 8 ? requantize_kernel<8> : requantize_kernel<16>, flat_shape(args.rows * args.inner), stream,
         args, "requantize");
}

void quantize_ranges(const DynamicArgs& args, Stream stream) {
  args.out_bits == 8 ? dynamic_of<8>(args, stream) : dynamic_of<4>(args, stream);
}

void pack_codes(const PackArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(ceil_to(args.inner, kEach) * args.rows, 256));
  shape.threads = 256;
  const auto kernel = args.unpacks ? (args.bits == 4 ? pack_kernel<4, true> : pack_kernel<2, true>)
                                   : (args.bits == 4 ? pack_kernel<4, false> : pack_kernel<2, false>);
  launch(kernel, shape, stream, args, args.unpacks ? "unpack" : "pack");
}

void find_not_finite(const FiniteArgs& args, Stream stream) {
  clear(args.found, 4, stream);
  launch(args.x_type == kF32   ? finite_kernel<kF32>
         : args.x_type == kF16 ? finite_kernel<kF16>
                               : finite_kernel<kBf16>,
         flat_shape(args.count), stream, args, "finite");
}

}  // namespace qk::cuda
