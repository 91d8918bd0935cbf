// The memory roof that benchmarks quote: every byte read once, in order, by one thread, and nothing done with it.
//
// Eight sums in 32-byte lanes; where the CPU has AVX2, one load a lane, which keeps up with every L2 (48 to 64 bytes a cycle).
// Included by bindings.cpp alone.
#pragma once
#include "../kernel.h"

namespace qk {
namespace {

using Lanes = uint64_t __attribute__((vector_size(32), aligned(1), may_alias));
constexpr int kReadSums = 8;

// The sum of all whole lanes: something the compiler must compute.
__attribute__((always_inline)) inline uint64_t read_lanes(const uint8_t* data, idx bytes, idx rounds) {
  const Lanes* lanes = reinterpret_cast<const Lanes*>(data);
  const idx count = bytes / idx(sizeof(Lanes)) / kReadSums * kReadSums;
  Lanes sums[kReadSums] = {};
  for (idx round = 0; round < rounds; ++round) {
    for (idx i = 0; i < count; i += kReadSums)
      for (int s = 0; s < kReadSums; ++s) sums[s] += lanes[i + s];
    asm volatile("" ::: "memory");  // the next round reads again
  }
  for (int s = 1; s < kReadSums; ++s) sums[0] += sums[s];
  return sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3];
}

#ifdef __x86_64__
__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* data, idx bytes, idx rounds) {
  return read_lanes(data, bytes, rounds);
}
#endif

inline uint64_t read_bytes(const uint8_t* data, idx bytes, idx rounds) {
#ifdef __x86_64__
  if (cpu_runs("x86_avx2")) return read_avx2(data, bytes, rounds);
#endif
  return read_lanes(data, bytes, rounds);
}

}  // namespace
}  // namespace qk
