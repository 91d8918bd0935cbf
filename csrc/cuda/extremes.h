// The range of a tensor, of rows, of columns, of groups: what a scale that is not given is found from (A7, A8).
//
// Two walks. Spans: a warp takes adjacent elements, 512 at a time, and one place's extremes stay in registers until the
// place changes; a tensor of one scale costs two atomics a warp. Columns: where short rows take turns (a scale for each
// column), a thread keeps its 16 columns in registers from row to row; walked as spans, every element was an atomic.
#pragma once
#include "ranges.h"

namespace qk::cuda {

constexpr int kChunk = 32 * kEach;  // elements of a warp at a time

QK_DEVICE void put_extremes(const ExtremesArgs& args, int64_t place, const Extremes& seen) {
  if (seen.above) ptx::red_max(args.ends + 2 * place, seen.above);
  if (seen.below) ptx::red_max(args.ends + 2 * place + 1, seen.below);
}

// Every lane of the warp calls it.
QK_DEVICE void put_of_warp(const ExtremesArgs& args, int64_t place, Extremes& seen) {
  if (place < 0) return;
  const int lane = ptx::thread() & 31;
  for (int step = 16; step > 0; step /= 2) {
    seen.above = larger(seen.above, ptx::shuffle(seen.above, lane ^ step));
    seen.below = larger(seen.below, ptx::shuffle(seen.below, lane ^ step));
  }
  if (lane == 0) put_extremes(args, place, seen);
  seen = Extremes();
}

// One lane's 16 elements, wherever each belongs.
QK_DEVICE void put_each(const ExtremesArgs& args, int64_t at, int64_t left, const Extremes (&seen)[kEach]) {
  int64_t current = -1;
  Extremes together;
  each_place(at, args.inner, left, args.place, [&](int i, int64_t place) {
    if (place != current) {
      if (current >= 0) put_extremes(args, current, together);
      together = Extremes();
      current = place;
    }
    together.join(seen[i]);
  });
  if (current >= 0) put_extremes(args, current, together);
}

template <Output kType>
QK_KERNEL(256, 2)
span_extremes(QK_ARGUMENT ExtremesArgs args) {
  const int64_t size = args.rows * args.inner, chunks = (size + kChunk - 1) / kChunk;
  const int64_t warps = int64_t(ptx::grid_x()) * 8, each = (chunks + warps - 1) / warps;
  const int64_t first = (int64_t(ptx::block_x()) * 8 + ptx::thread() / 32) * each;
  int64_t place = -1;
  Extremes seen;
  QK_NO_UNROLL
  for (int64_t chunk = first; chunk < first + each && chunk < chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < size ? begin + kChunk : size;
    const int64_t at = begin + (ptx::thread() & 31) * kEach;
    float x[kEach];
    load_floats<kType>(args.x, at, end - at, x);  // zeros behind
    const Walk one(begin, args.inner), other(end - 1, args.inner);
    if (one.row == other.row && one.column / args.place.group == other.column / args.place.group) {
      const int64_t here = one.place(args.place);
      if (here != place) put_of_warp(args, place, seen);
      place = here;
      QK_UNROLL
      for (int i = 0; i < kEach; ++i) seen.see(x[i]);
    } else {
      put_of_warp(args, place, seen);
      place = -1;
      Extremes own[kEach];
      QK_UNROLL
      for (int i = 0; i < kEach; ++i) own[i].see(x[i]);
      put_each(args, at, end - at, own);
    }
  }
  put_of_warp(args, place, seen);
}

// After `period` elements the places begin again. block_y: a part of the periods.
template <Output kType>
QK_KERNEL(256, 2)
column_extremes(QK_ARGUMENT ExtremesArgs args) {
  const int64_t period = args.place.rows * args.place.repeat * args.inner, at = first_element();
  if (at >= period) return;
  const int64_t periods = args.rows * args.inner / period;
  Extremes own[kEach];
  QK_NO_UNROLL
  for (int64_t p = ptx::block_y(); p < periods; p += ptx::grid_y()) {
    float x[kEach];
    load_floats<kType>(args.x, p * period + at, period - at, x);
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) own[i].see(x[i]);
  }
  put_each(args, at, period - at, own);
}

QK_DEVICE float rounded_scale(float scale, Output type) {
  if (type == kF16) scale = half_to_float(float_to_half(scale));
  if (type == kBf16) scale = bfloat_to_float(float_to_bfloat(scale));
  return scale == 0 ? 1.0f : scale;
}

QK_DEVICE int32_t zero_of(const FoundArgs& args, int64_t place, float scale) {
  if (args.is_symmetric) return args.middle;
  const float zero = 0.0f - -float_of(ptx::load(args.ends + 2 * place + 1)) / scale;
  return near_even(clamp_or_low(zero, 0.0f, float(args.high - args.low))) + args.low;
}

QK_KERNEL(256, 2) found_scales(QK_ARGUMENT FoundArgs args) {
  const int64_t place = int64_t(ptx::block_x()) * 256 + ptx::thread();
  if (place >= args.places) return;
  const float above = float_of(ptx::load(args.ends + 2 * place)),
              below = float_of(ptx::load(args.ends + 2 * place + 1));
  if (args.is_symmetric) {
    const Symmetric found = symmetric(above > below ? above : below, args.high - args.middle);
    ptx::store(args.scale + place, rounded_scale(found.scale, args.scale_type));
    if (args.reciprocal) ptx::store(args.reciprocal + place, found.reciprocal);
    if (args.zero) ptx::store(args.zero + place, args.middle);
  } else {
    const float scale = rounded_scale(asymmetric(-below, above, args.high - args.low).scale, args.scale_type);
    ptx::store(args.scale + place, scale);
    if (args.zero) ptx::store(args.zero + place, zero_of(args, place, scale));
  }
}

// Two-level scales (A10) are 1 … 16 times a common one of 20 significant bits: exact products. A warp takes
// the groups that share one. `ideal_scale` is 0 of an empty range.
QK_DEVICE float ideal_scale(const FoundArgs& args, int64_t place) {
  const float above = float_of(ptx::load(args.ends + 2 * place)),
              below = float_of(ptx::load(args.ends + 2 * place + 1));
  if (!args.is_symmetric) return (above + below) / float(args.high - args.low);
  const float amax = above > below ? above : below;
  return amax < kSmallestAmax ? 0.0f : amax / float(args.high - args.middle);
}

QK_DEVICE double common_scale(float largest) {
  const double sixteenth = double(largest) / 16;
  uint64_t bits;
  memcpy(&bits, &sixteenth, 8);
  bits = (bits + (uint64_t(1) << 33) - 1) & ~((uint64_t(1) << 33) - 1);  // 1 + 19 bits, rounded up
  double common;
  memcpy(&common, &bits, 8);
  return largest == 0 ? 1.0 : common > 1.1754943508222875e-38 ? common : 1.1754943508222875e-38;
}

QK_KERNEL(256, 2) two_level_scales(QK_ARGUMENT FoundArgs args) {
  const int lane = ptx::thread() & 31;
  const int64_t which = int64_t(ptx::block_x()) * 8 + ptx::thread() / 32;
  if (which * args.groups >= args.places) return;
  const int64_t first = which / args.step * args.groups * args.step + which % args.step;
  uint32_t most = 0;
  for (int64_t g = lane; g < args.groups; g += 32)
    most = larger(most, bits_of(ideal_scale(args, first + g * args.step)));
  for (int step = 16; step > 0; step /= 2) most = larger(most, ptx::shuffle(most, lane ^ step));
  const double common = common_scale(float_of(most));
  for (int64_t g = lane; g < args.groups; g += 32) {
    const int64_t place = first + g * args.step;
    const double wanted = double(ideal_scale(args, place)) / common;
    int32_t factor = int32_t(wanted < 16 ? wanted : 16.0);
    if (double(factor) < wanted && factor < 16) ++factor;
    if (factor < 1) factor = 1;
    const auto scale = float(common * factor);
    ptx::store(args.factors + place, uint8_t(factor));
    ptx::store(args.scale + place, scale);
    if (args.zero) ptx::store(args.zero + place, zero_of(args, place, scale));
  }
}

inline void launch_extremes(const ExtremesArgs& args, Stream stream) {
  const Placement& p = args.place;
  clear(args.ends, size_t(p.rows * p.columns) * 8, stream);
  const int64_t size = args.rows * args.inner, period = p.rows * p.repeat * args.inner;
  const int64_t full = 8 * int64_t(multiprocessors());  // CTAs that fill the GPU, nearly
  Shape shape;
  shape.threads = 256;
  if (period < size && size % period == 0 && args.inner < kChunk) {
    const int64_t across = ceil_to(period, 256 * kEach), down = full / across + 1;
    shape.grid_x = int(across);
    shape.grid_y = int(down < size / period ? down : size / period);
    launch(args.x_type == kF32   ? column_extremes<kF32>
           : args.x_type == kF16 ? column_extremes<kF16>
                                 : column_extremes<kBf16>,
           shape, stream, args, "column_extremes");
    return;
  }
  const int64_t all = ceil_to(size, 8 * kChunk);
  shape.grid_x = int(all < full ? all : full);
  launch(args.x_type == kF32   ? span_extremes<kF32>
         : args.x_type == kF16 ? span_extremes<kF16>
                               : span_extremes<kBf16>,
         shape, stream, args, "span_extremes");
}

inline void launch_found(const FoundArgs& args, Stream stream) {
  Shape shape;
  shape.threads = 256;
  shape.grid_x = int(ceil_to(args.places, args.factors ? 8 * args.groups : 256));
  if (args.factors) launch(two_level_scales, shape, stream, args, "two_level_scales");
  else launch(found_scales, shape, stream, args, "found_scales");
}

// ---------------------------------------------------------------- sums in 64 bits
QK_KERNEL(256, 2) widen_sums(QK_ARGUMENT WidenArgs args) {
  const int64_t at = (int64_t(ptx::block_x()) * 256 + ptx::thread()) * 2;
  if (at >= args.count) return;
  QK_UNROLL
  for (int i = 0; i < 2; ++i)
    if (at + i < args.count)
      ptx::store(args.out + at + i, int64_t(ptx::load(args.sums + at + i)) +
                                        (args.adds ? ptx::load_written(args.out + at + i) : int64_t(0)));
}

inline void launch_widen(const WidenArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(args.count, 512));
  shape.threads = 256;
  launch(widen_sums, shape, stream, args, "widen_sums");
}

}  // namespace qk::cuda
