// quantize, dequantize, requantize, dynamic_quantize: one pass over memory, 16 elements a thread.
//
// Arrays are adjacent, so a thread takes 16 elements of the flat array, whatever the rows are: every access but the last
// is whole and aligned. Where the 16 share a scale (per tensor, per row, most groups) it is read once.
// The range kernels hold a row in registers between finding its range and writing its codes: read once, written once.
#pragma once
#include "../arithmetic.h"
#include "epilogue.h"
#include "launch.h"

namespace qk::cuda {

constexpr int kEach = 16;  // elements of a thread

// ---------------------------------------------------------------- 16 elements to and from memory
template <int kBytes>
struct AccessOf {  // the widest access that fits
  using Type = Words4;
};
template <>
struct AccessOf<8> {
  using Type = Words2;
};
template <>
struct AccessOf<4> {
  using Type = uint32_t;
};

template <int kBytes>
QK_DEVICE void load_bytes(const void* from, int64_t left_bytes, uint8_t (&to)[kBytes]) {
  using Access = typename AccessOf<kBytes>::Type;
  constexpr int kStep = int(sizeof(Access));
  const auto* bytes = static_cast<const uint8_t*>(from);
  if (left_bytes >= kBytes && (reinterpret_cast<uintptr_t>(bytes) & (kStep - 1)) == 0) {
    QK_UNROLL
    for (int i = 0; i < kBytes; i += kStep) {
      const Access words = ptx::load(reinterpret_cast<const Access*>(bytes + i));
      memcpy(to + i, &words, kStep);
    }
  } else {
    QK_UNROLL
    for (int i = 0; i < kBytes; ++i) to[i] = i < left_bytes ? ptx::load(bytes + i) : uint8_t(0);
  }
}

template <int kBytes>
QK_DEVICE void store_bytes(void* to, int64_t left_bytes, const uint8_t (&from)[kBytes]) {
  using Access = typename AccessOf<kBytes>::Type;
  constexpr int kStep = int(sizeof(Access));
  auto* bytes = static_cast<uint8_t*>(to);
  if (left_bytes >= kBytes && (reinterpret_cast<uintptr_t>(bytes) & (kStep - 1)) == 0) {
    QK_UNROLL
    for (int i = 0; i < kBytes; i += kStep) {
      Access words;
      memcpy(&words, from + i, kStep);
      ptx::store(reinterpret_cast<Access*>(bytes + i), words);
    }
  } else {
    QK_UNROLL
    for (int i = 0; i < kBytes; ++i)
      if (i < left_bytes) ptx::store(bytes + i, from[i]);
  }
}

template <Output kType>
QK_DEVICE void load_floats(const void* from, int64_t at, int64_t left, float (&x)[kEach]) {
  constexpr int kBytes = kType == kF32 ? 4 : 2;
  alignas(16) uint8_t raw[kEach * kBytes];
  load_bytes(static_cast<const uint8_t*>(from) + at * kBytes, left * kBytes, raw);
  QK_UNROLL
  for (int i = 0; i < kEach; ++i) {
    if constexpr (kType == kF32) {
      memcpy(&x[i], raw + 4 * i, 4);
    } else {
      uint16_t half;
      memcpy(&half, raw + 2 * i, 2);
      x[i] = kType == kF16 ? half_to_float(half) : bfloat_to_float(half);
    }
  }
}

// Codes of 16, 8, 4 or 2 bits, lower index in the lower bits (A1); those behind `left` become 0 where they share a byte.
template <int kBits>
QK_DEVICE void store_codes(void* to, int64_t at, int64_t left, const int32_t (&codes)[kEach]) {
  alignas(16) uint8_t raw[kEach * kBits / 8];
  QK_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const auto code = uint32_t(codes[i]);
    if constexpr (kBits == 16) raw[2 * i] = uint8_t(code), raw[2 * i + 1] = uint8_t(code >> 8);
    else if constexpr (kBits == 8) raw[i] = uint8_t(code);
    else {
      const uint32_t field = i < left ? (code & ((1u << kBits) - 1)) << i * kBits % 8 : 0u;
      raw[i * kBits / 8] = uint8_t(i * kBits % 8 ? raw[i * kBits / 8] | field : field);
    }
  }
  store_bytes(static_cast<uint8_t*>(to) + at * kBits / 8, (left * kBits + 7) / 8, raw);
}

template <int kBits>
QK_DEVICE void load_codes(const void* from, int64_t at, int64_t left, bool is_signed, int32_t (&codes)[kEach]) {
  alignas(16) uint8_t raw[kEach * kBits / 8];
  load_bytes(static_cast<const uint8_t*>(from) + at * kBits / 8, (left * kBits + 7) / 8, raw);
  const int32_t sign = is_signed ? 1 << (kBits - 1) : 0;
  QK_UNROLL
  for (int i = 0; i < kEach; ++i) {
    int32_t code;
    if constexpr (kBits == 16) code = raw[2 * i] | raw[2 * i + 1] << 8;
    else code = raw[i * kBits / 8] >> i * kBits % 8 & ((1 << kBits) - 1);
    codes[i] = (code ^ sign) - sign;
  }
}

// ---------------------------------------------------------------- which scale
// Walks along the flat array, and knows the place of each element's scale.
struct Walk {
  int64_t row, column, inner;
  QK_DEVICE Walk(int64_t at, int64_t inner_) : inner(inner_) {
    row = at >> 32 || inner >> 32 ? at / inner : int64_t(uint32_t(at) / uint32_t(inner));  // 64 bits: a hundred times
    column = at - row * inner;
  }
  QK_DEVICE int64_t place(const Placement& p) const { return row / p.repeat % p.rows * p.columns + column / p.group; }
  QK_DEVICE void next() {
    if (++column == inner) column = 0, ++row;
  }
  QK_DEVICE bool together(const Placement& p, int64_t left) const {  // do 16 elements from here have one scale?
    return column + kEach <= inner && column / p.group == (column + kEach - 1) / p.group && left >= kEach;
  }
};

// body(i, place) for the 16 elements from `at` on.
template <class Body>
QK_DEVICE void each_place(int64_t at, int64_t inner, int64_t left, const Placement& p, Body body) {
  Walk walk(at, inner);
  if (walk.together(p, left)) {
    const int64_t place = walk.place(p);
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) body(i, place);
  } else {
    QK_UNROLL
    for (int i = 0; i < kEach; ++i) {
      if (i < left) body(i, walk.place(p));
      walk.next();
    }
  }
}

QK_DEVICE int64_t first_element() { return (int64_t(ptx::block_x()) * 256 + ptx::thread()) * kEach; }

// ---------------------------------------------------------------- A7
template <Output kType, int kBits>
QK_KERNEL(256, 2)
quantize_kernel(QK_ARGUMENT QuantizeArgs args) {
  const int64_t at = first_element(), left = args.rows * args.inner - at;
  if (left <= 0) return;
  float x[kEach];
  int32_t codes[kEach];
  load_floats<kType>(args.x, at, left, x);
  each_place(at, args.inner, left, args.place, [&](int i, int64_t place) {
    const int32_t zero = args.zero ? ptx::load(args.zero + place) : 0;
    codes[i] = args.reciprocal
                   ? quantize_symmetric(x[i], ptx::load(args.reciprocal + place), args.high)
                   : quantize(x[i], ptx::load(args.scale + place), args.low - zero, args.high - zero) + zero;
  });
  store_codes<kBits>(args.out, at, left, codes);
}

// ---------------------------------------------------------------- A9
template <int kBits, Output kType>
QK_KERNEL(256, 2)
dequantize_kernel(QK_ARGUMENT DequantizeArgs args) {
  const int64_t at = first_element(), left = args.rows * args.inner - at;
  if (left <= 0) return;
  int32_t codes[kEach];
  load_codes<kBits>(args.codes, at, left, args.is_signed, codes);
  constexpr int kBytes = kType == kF32 ? 4 : 2;
  alignas(16) uint8_t out[kEach * kBytes];
  each_place(at, args.inner, left, args.place, [&](int i, int64_t place) {
    const float y = dequantize(codes[i], args.zero ? ptx::load(args.zero + place) : 0, ptx::load(args.scale + place));
    if constexpr (kType == kF32) {
      memcpy(out + 4 * i, &y, 4);
    } else {
      const uint16_t half = kType == kF16 ? float_to_half(y) : float_to_bfloat(y);
      memcpy(out + 2 * i, &half, 2);
    }
  });
  store_bytes(static_cast<uint8_t*>(args.out) + at * kBytes, left * kBytes, out);
}

// ---------------------------------------------------------------- A5
QK_DEVICE int32_t requantized(const RequantizeArgs& args, int64_t place, int32_t acc) {
  const int32_t zero = args.zero ? ptx::load(args.zero + place) : 0, low = args.low - zero, high = args.high - zero;
  if (args.bias) acc = add_wrapped(acc, ptx::load(args.bias + place));
  if (args.rounding == kHalfEven)
    return round_half_even(acc, ptx::load(static_cast<const float*>(args.m_values) + place), low, high) + zero;
  if (args.rounding == kHalfAway)
    return round_half_away(acc, ptx::load(static_cast<const double*>(args.m_values) + place), low, high) + zero;
  const Fixed m = {ptx::load(static_cast<const int32_t*>(args.m_values) + place), ptx::load(args.e_values + place)};
  if (args.rounding == kGemmlowp) return round_gemmlowp(acc, m, low, high) + zero;
  if (args.rounding == kRuy) return round_ruy(acc, m, low, high) + zero;
  return round_half_up(acc, m, low, high) + zero;
}

template <int kBits>
QK_KERNEL(256, 2)
requantize_kernel(QK_ARGUMENT RequantizeArgs args) {
  const int64_t at = first_element(), left = args.rows * args.inner - at;
  if (left <= 0) return;
  alignas(16) uint8_t raw[kEach * 4];
  load_bytes(args.acc + at, left * 4, raw);
  int32_t codes[kEach];
  each_place(at, args.inner, left, args.place, [&](int i, int64_t place) {
    int32_t acc;
    memcpy(&acc, raw + 4 * i, 4);
    codes[i] = requantized(args, place, acc);
  });
  store_codes<kBits>(args.out, at, left, codes);
}

// ---------------------------------------------------------------- A1: rows that end inside of a byte
// A thread: 16 codes of a row.
template <int kBits, bool kUnpacks>
QK_KERNEL(256, 2)
pack_kernel(QK_ARGUMENT PackArgs args) {
  const int64_t across = (args.inner + kEach - 1) / kEach, at = int64_t(ptx::block_x()) * 256 + ptx::thread();
  if (at >= across * args.rows) return;
  const int64_t row = at / across, column = at % across * kEach, left = args.inner - column;
  uint8_t* bytes = static_cast<uint8_t*>(args.codes) + row * args.inner;
  uint8_t* packed = static_cast<uint8_t*>(args.packed) + row * ((args.inner * kBits + 7) / 8);
  int32_t codes[kEach];
  if constexpr (kUnpacks) {
    load_codes<kBits>(packed, column, left, args.is_signed, codes);
    store_codes<8>(bytes, column, left, codes);
  } else {
    load_codes<8>(bytes, column, left, false, codes);
    store_codes<kBits>(packed, column, left, codes);
  }
}

// ---------------------------------------------------------------- A8: the first that is no finite number
template <Output kType>
QK_KERNEL(256, 2)
finite_kernel(QK_ARGUMENT FiniteArgs args) {
  const int64_t at = first_element(), left = args.count - at;
  if (left <= 0) return;
  float x[kEach];
  load_floats<kType>(args.x, at, left, x);  // zeros behind
  bool all = true;
  QK_UNROLL
  for (int i = 0; i < kEach; ++i) all = all && is_finite(x[i]);
  if (!all) ptx::red_max(args.found, ~uint32_t(at / kEach));
}

inline Shape flat_shape(int64_t elements) {
  Shape shape;
  shape.grid_x = int(ceil_to(elements, 256 * kEach));
  shape.threads = 256;
  return shape;
}

}  // namespace qk::cuda
