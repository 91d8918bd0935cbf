// unroll<N>([&](auto i) QK_INLINE { … }): the body N times, i a constant each time.
//
// Why not a plain loop: gcc 12 unrolls some of them only after it has decided which arrays live in registers, and the
// accumulators of a 12×32 tile then stay in memory (108 stack accesses for 96 multiplications).
#pragma once

#define QK_INLINE __attribute__((always_inline))

namespace qk {
namespace QK_ISA {
namespace {

// Speed does not matter, or there are no registers to think of: a plain loop, a fifth of the compile time.
#if defined(QK_EMULATE) || defined(__SANITIZE_ADDRESS__) || defined(QK_PLAIN_LOOPS)

template <int N, class Body>
void unroll(const Body& body) {
  for (int i = 0; i < N; ++i) body(i);
}

#else

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};

template <int N, int I = 0, class Body>
QK_INLINE inline void unroll(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<N, I + 1>(body);
  }
}

#endif

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
