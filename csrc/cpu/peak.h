// The roof that benchmarks quote: a kernel's own multiply-and-add, from registers, in as many independent sums as the
// kernel keeps.
#pragma once
#include "driver.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

// `Ops` operations an instruction. The compiler is made to forget, before every instruction, what the factor is and that
// the sums are equal: else it hoists the product, or keeps one sum of all that are the same. (A sum as its own next factor
// hides both as well, and costs a register copy each: half of the rate.)
template <class V, int Sums, int Ops>
inline double peak_of(idx rounds, typename V::Reg x) {
  using Reg = typename V::Reg;
  Reg sums[Sums];
  const Reg y = x;
  unroll<Sums>([&](auto i) QK_INLINE { sums[i] = y; });
  for (idx round = 0; round < rounds; ++round)
    unroll<Sums>([&](auto i) QK_INLINE {
      QK_KEEP(x);
      sums[i] = V::mul_add(sums[i], x, y);
      QK_KEEP(sums[i]);
    });
  Reg total = x;
  unroll<Sums>([&](auto i) QK_INLINE { total = V::mul_add(total, sums[i], x); });
  QK_KEEP(total);
  return double(rounds) * Sums * Ops;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
