// dynamic_quantize (A8): range, scale, codes and their sums. A CTA takes a range: a row, or a group of one. Ranges of up
// to 8192 elements wait in registers between the two passes; what is longer is read again.
#pragma once
#include "elementwise.h"

namespace qk::cuda {

constexpr int kHeld = 2;  // times 16 elements of a thread that stay in registers
constexpr int kRangeThreads = 256;

// Of all threads of the CTA, to all of them. `combine` is associative and commutative.
template <class Combine>
QK_DEVICE uint32_t reduce(uint32_t value, uint32_t shared, Combine combine) {
  for (int step = 16; step > 0; step /= 2) value = combine(value, ptx::shuffle(value, (ptx::thread() & 31) ^ step));
  if ((ptx::thread() & 31) == 0) ptx::store_shared(shared + ptx::thread() / 32 * 4, value);
  ptx::cta_sync();
  value = ptx::load_shared<uint32_t>(shared);
  for (int warp = 1; warp < kRangeThreads / 32; ++warp)
    value = combine(value, ptx::load_shared<uint32_t>(shared + warp * 4));
  ptx::cta_sync();
  return value;
}

QK_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

struct Extremes {  // of the finite elements, and 0: magnitudes as bits, which are ordered as the numbers are
  uint32_t above = 0, below = 0;
  QK_DEVICE void see(float x) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) return;
    if (bits >> 31) below = below > magnitude ? below : magnitude;
    else above = above > magnitude ? above : magnitude;
  }
  QK_DEVICE void join(const Extremes& other) {
    above = above > other.above ? above : other.above;
    below = below > other.below ? below : other.below;
  }
};

QK_DEVICE uint32_t larger(uint32_t x, uint32_t y) { return x > y ? x : y; }
QK_DEVICE uint32_t added(uint32_t x, uint32_t y) { return x + y; }

template <Output kType, int kBits>
QK_KERNEL(kRangeThreads, 2)
dynamic_kernel(QK_ARGUMENT DynamicArgs args) {
  const uint32_t shared = ptx::shared_memory();
  const int64_t groups = (args.inner + args.group - 1) / args.group;
  const int64_t row = ptx::block_x() / groups, group = ptx::block_x() % groups, first = group * args.group;
  const int64_t size = first + args.group < args.inner ? args.group : args.inner - first;
  const int64_t from = row * args.inner + first;
  float x[kHeld][kEach];
  Extremes seen;
  QK_UNROLL
  for (int h = 0; h < kHeld; ++h) {
    const int64_t at = (int64_t(h) * kRangeThreads + ptx::thread()) * kEach;
    load_floats<kType>(args.x, from + at, at < size ? size - at : 0, x[h]);  // zeros behind
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) seen.see(x[h][i]);
  }
  const int64_t held = int64_t(kHeld) * kRangeThreads * kEach, more = int64_t(kRangeThreads) * kEach;
  for (int64_t at = held + ptx::thread() * kEach; at < size; at += more) {
    float again[kEach];
    load_floats<kType>(args.x, from + at, size - at, again);
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) seen.see(again[i]);
  }
  seen.above = reduce(seen.above, shared, larger);
  seen.below = reduce(seen.below, shared, larger);

  const bool is_symmetric = args.low < 0;
  const Symmetric two = symmetric(float_of(larger(seen.above, seen.below)), args.high);
  const Asymmetric one = asymmetric(-float_of(seen.below), float_of(seen.above), args.high);
  uint32_t sum = 0;
  const auto put = [&](int64_t at, const float (&values)[kEach]) {
    if (at >= size) return;
    int32_t codes[kEach];
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      codes[i] = is_symmetric ? quantize_symmetric(values[i], two.reciprocal, args.high)
                              : quantize(values[i], one.scale, -one.zero, args.high - one.zero) + one.zero;
      if (at + i < size) sum += uint32_t(codes[i]);
      else codes[i] = 0;
    }
    store_codes<kBits>(static_cast<uint8_t*>(args.out) + row * args.out_pitch, first + at, size - at, codes);
  };
  QK_UNROLL
  for (int h = 0; h < kHeld; ++h) put((int64_t(h) * kRangeThreads + ptx::thread()) * kEach, x[h]);
  for (int64_t at = held + ptx::thread() * kEach; at < size; at += more) {
    float again[kEach];
    load_floats<kType>(args.x, from + at, size - at, again);
    put(at, again);
  }
  if (args.sums) sum = reduce(sum, shared, added);
  if (ptx::thread() == 0) {
    ptx::store(args.scale + ptx::block_x(), is_symmetric ? two.scale : one.scale);
    if (args.zero) ptx::store(args.zero + ptx::block_x(), is_symmetric ? 0 : one.zero);
    if (args.sums) ptx::store(args.sums + ptx::block_x(), int32_t(sum));
  }
  if (group == groups - 1)
    for (int64_t at = (args.inner * kBits + 7) / 8 + ptx::thread(); at < args.out_pitch; at += kRangeThreads)
      ptx::store(static_cast<uint8_t*>(args.out) + row * args.out_pitch + at, uint8_t(0));
}

}  // namespace qk::cuda
