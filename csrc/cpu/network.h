// Sums, products and tables of codes (A14, A15) over Lanes, compiled once per ISA: what runs between the products of a
// quantized network. Memory bound: two loads, one store, seven instructions a vector.
#pragma once
#include "epilogue.h"

namespace qk {
namespace QK_ISA {
namespace {

template <class T>
struct Ends {
  static constexpr int32_t low = T(-1) < T(0) ? -128 : 0, high = low + 255;
};

// The code of a float32: clamped, then half to even (lemma 1). NaN, of ∞ − ∞, gives the lowest.
template <class T>
QK_INLINE inline Lanes::I code_of(Lanes::F t) {
  using L = Lanes;
  return L::to_int(L::min(L::max(t, L::splat(float(Ends<T>::low))), L::splat(float(Ends<T>::high))));
}

template <bool Streams, class T>
inline void add_codes(const Elementwise& e, Range elements) {
  using L = Lanes;
  const T *const a = static_cast<const T*>(e.in) + elements.begin, *const b =
                                                                       static_cast<const T*>(e.other) + elements.begin;
  const L::F a_factor = L::splat(e.a_factor), b_factor = L::splat(e.b_factor), offset = L::splat(e.offset);
  codes_of<Streams>(elements.end - elements.begin, static_cast<T*>(e.out) + elements.begin, [&](auto at) QK_INLINE {
    const L::F inner = L::fma(L::to_float(at.get(b)), b_factor, offset);
    return code_of<T>(L::fma(L::to_float(at.get(a)), a_factor, inner));
  });
}

template <bool Streams, class T>
inline void mul_codes(const Elementwise& e, Range elements) {
  using L = Lanes;
  const T *const a = static_cast<const T*>(e.in) + elements.begin, *const b =
                                                                       static_cast<const T*>(e.other) + elements.begin;
  const L::I a_zero = L::splat(e.a_zero), b_zero = L::splat(e.b_zero);
  const L::F m = L::splat(e.a_factor), zero = L::splat(e.offset);
  codes_of<Streams>(elements.end - elements.begin, static_cast<T*>(e.out) + elements.begin, [&](auto at) QK_INLINE {
    // |(a − za)(b − zb)| < 2¹⁷: the product of the floats is exact
    const L::F product = L::mul(L::to_float(L::sub(at.get(a), a_zero)), L::to_float(L::sub(at.get(b), b_zero)));
    return code_of<T>(L::add(L::mul(product, m), zero));
  });
}

template <class T>
void add_block(const Elementwise& e, Range, Range elements) {
  if (!e.stream) return add_codes<false, T>(e, elements);
  add_codes<true, T>(e, elements);
  Lanes::fence();
}

template <class T>
void mul_block(const Elementwise& e, Range, Range elements) {
  if (!e.stream) return mul_codes<false, T>(e, elements);
  mul_codes<true, T>(e, elements);
  Lanes::fence();
}

// Two loads and a store a code. Wider registers: lookup512.h.
inline void lookup_block(const Elementwise& e, Range, Range elements) {
  const uint8_t *const x = static_cast<const uint8_t*>(e.in), *const table = e.table;
  uint8_t* const out = static_cast<uint8_t*>(e.out);
  for (idx i = elements.begin; i < elements.end; ++i) out[i] = table[x[i]];
}

// Needs what QK_ELEMENTWISE_ROWS needs.
#define QK_NETWORK(op, types, block) {op, types, QK_STR(QK_ISA), 2, 1, kElementNs, block, nullptr, nullptr}
#define QK_NETWORK_ROWS                                                                            \
  QK_NETWORK("add", "s8s8s8", add_block<int8_t>), QK_NETWORK("add", "u8u8u8", add_block<uint8_t>), \
      QK_NETWORK("mul", "s8s8s8", mul_block<int8_t>), QK_NETWORK("mul", "u8u8u8", mul_block<uint8_t>)

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
