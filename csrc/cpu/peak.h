// The roof that benchmarks quote: a kernel's own multiply-and-add, from registers, in as many independent sums as the
// kernel keeps.
#pragma once
#include "driver.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

// `Ops` operations an instruction. The first factor is made opaque each time, so that no product is hoisted.
template <class V, int Sums, int Ops>
inline double peak_of(idx rounds, typename V::Reg x) {
  typename V::Reg sums[Sums], y = x;
  for (int i = 0; i < Sums; ++i) sums[i] = x;
  for (idx round = 0; round < rounds; ++round)
    for (int i = 0; i < Sums; ++i) {
      QK_KEEP(y);
      sums[i] = V::mul_add(sums[i], y, x);
    }
  for (int i = 1; i < Sums; ++i) sums[0] = V::mul_add(sums[0], sums[i], x);
  y = sums[0];
  QK_KEEP(y);
  return double(rounds) * Sums * Ops;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
