// The roof that benchmarks quote: a kernel's own multiply-and-add, from registers, in as many independent sums as the
// kernel keeps.
#pragma once
#include "driver.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

// step(sum, x, y): sum += x · y in `Ops` operations
template <int Sums, int Ops, class Reg, class Step>
inline double peak_of(idx rounds, Reg x, Reg y, const Step& step) {
  Reg sums[Sums];
  for (int i = 0; i < Sums; ++i) sums[i] = x;
  for (idx round = 0; round < rounds; ++round)
    for (int i = 0; i < Sums; ++i) {
      QK_KEEP(x);  // the product is not hoisted
      step(sums[i], x, y);
    }
  for (int i = 1; i < Sums; ++i) step(sums[0], sums[i], y);
  QK_KEEP(sums[0]);
  return double(rounds) * Sums * Ops;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
