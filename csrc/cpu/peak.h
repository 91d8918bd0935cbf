// The roof that benchmarks quote: a kernel's own multiply-and-add, from registers, in as many independent sums as the
// kernel keeps.
#pragma once
#include "driver.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

// `Ops` operations an instruction. Each sum is its own next factor, so that no product can be hoisted; there are sums
// enough to cover that latency.
template <class V, int Sums, int Ops>
inline double peak_of(idx rounds, typename V::Reg x) {
  using Reg = typename V::Reg;
  Reg sums[Sums];
  unroll<Sums>([&](auto i) QK_INLINE {
    sums[i] = x;
    QK_KEEP(sums[i]);  // or the compiler sees that they are equal, and keeps one
  });
  for (idx round = 0; round < rounds; ++round)
    unroll<Sums>([&](auto i) QK_INLINE { sums[i] = V::mul_add(sums[i], sums[i], x); });
  Reg total = x;
  unroll<Sums>([&](auto i) QK_INLINE { total = V::mul_add(total, sums[i], x); });
  QK_KEEP(total);
  return double(rounds) * Sums * Ops;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
