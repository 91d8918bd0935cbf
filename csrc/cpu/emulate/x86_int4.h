// The intrinsics of 4- and 2-bit weights, in plain C++; a part of emulate/x86.h.
#pragma once

namespace {

// Shifts of 16 bits, not of bytes: bits of one byte move into its neighbour, as on the hardware.
template <int Bytes>
Reg<Bytes> shift_right16(const Reg<Bytes>& x, unsigned count) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 2; ++i) z.set(i, uint16_t(x.template at<uint16_t>(i) >> count));
  return z;
}

template <int Bytes>
Reg<Bytes> shift_left32(const Reg<Bytes>& x, unsigned count) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 4; ++i) z.set(i, x.template at<uint32_t>(i) << count);
  return z;
}

template <class T, int Bytes>
Reg<Bytes> product_of(const Reg<Bytes>& x, const Reg<Bytes>& y) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / int(sizeof(T)); ++i)
    z.set(i, T(uint32_t(x.template at<T>(i)) * uint32_t(y.template at<T>(i))));
  return z;
}

template <class T, int Bytes>
Reg<Bytes> difference_of(const Reg<Bytes>& x, const Reg<Bytes>& y) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / int(sizeof(T)); ++i) z.set(i, T(x.template at<T>(i) - y.template at<T>(i)));
  return z;
}

[[maybe_unused]] __m256i _mm256_srli_epi16(__m256i x, int n) { return shift_right16(x, unsigned(n)); }
[[maybe_unused]] __m256i _mm256_slli_epi32(__m256i x, int n) { return shift_left32(x, unsigned(n)); }
[[maybe_unused]] __m256i _mm256_set1_epi8(char x) { return splat<char, 32>(x); }
[[maybe_unused]] __m256i _mm256_or_si256(__m256i x, __m256i y) {
  return map2<uint32_t>(x, y, [](uint32_t a, uint32_t b) { return a | b; });
}
[[maybe_unused]] __m256i _mm256_mullo_epi32(__m256i x, __m256i y) { return product_of<uint32_t>(x, y); }
[[maybe_unused]] __m256i _mm256_add_epi16(__m256i x, __m256i y) {
  __m256i z;
  for (int i = 0; i < 16; ++i) z.set(i, uint16_t(x.at<uint16_t>(i) + y.at<uint16_t>(i)));
  return z;
}

// vpmaddubsw: saturates its 16-bit sums
template <class R>
R dot_saturated(const R& u, const R& s) {
  R z;
  for (int i = 0; i < int(sizeof(R) / 2); ++i) {
    const int sum = u.template at<uint8_t>(2 * i) * s.template at<int8_t>(2 * i) +
                    u.template at<uint8_t>(2 * i + 1) * s.template at<int8_t>(2 * i + 1);
    z.set(i, int16_t(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum));
  }
  return z;
}
[[maybe_unused]] __m256i _mm256_maddubs_epi16(__m256i u, __m256i s) { return dot_saturated(u, s); }
[[maybe_unused]] __m512i _mm512_maddubs_epi16(__m512i u, __m512i s) { return dot_saturated(u, s); }

[[maybe_unused]] __m512i _mm512_srli_epi16(__m512i x, unsigned n) { return shift_right16(x, n); }
[[maybe_unused]] __m512i _mm512_slli_epi16(__m512i x, unsigned n) {
  __m512i z;
  for (int i = 0; i < 32; ++i) z.set(i, uint16_t(x.at<uint16_t>(i) << n));
  return z;
}
[[maybe_unused]] __m512i _mm512_slli_epi32(__m512i x, unsigned n) { return shift_left32(x, n); }
[[maybe_unused]] __m512i _mm512_set1_epi8(char x) { return splat<char, 64>(x); }
[[maybe_unused]] __m512i _mm512_mullo_epi32(__m512i x, __m512i y) { return product_of<uint32_t>(x, y); }
[[maybe_unused]] __m512i _mm512_mullo_epi16(__m512i x, __m512i y) { return product_of<uint16_t>(x, y); }
// Bit by bit, what `table` has at index 4x + 2y + z.
[[maybe_unused]] __m512i _mm512_ternarylogic_epi32(__m512i x, __m512i y, __m512i z, int table) {
  __m512i result;
  for (int i = 0; i < 16; ++i) {
    uint32_t bits = 0;
    for (int b = 0; b < 32; ++b) {
      const auto bit = [&](const __m512i& r) { return r.at<uint32_t>(i) >> b & 1; };
      bits |= (uint32_t(table) >> (4 * bit(x) + 2 * bit(y) + bit(z)) & 1) << b;
    }
    result.set(i, bits);
  }
  return result;
}
[[maybe_unused]] __m512i _mm512_sub_epi8(__m512i x, __m512i y) { return difference_of<uint8_t>(x, y); }

[[maybe_unused]] __m256 _mm256_castsi256_ps(__m256i x) { return cast<__m256>(x); }
[[maybe_unused]] __m512 _mm512_castsi512_ps(__m512i x) { return cast<__m512>(x); }

[[maybe_unused]] __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }

template <class R>
R difference_of_floats(const R& x, const R& y) {
  R z;
  for (int i = 0; i < int(sizeof(R) / 4); ++i) z.set(i, x.template at<float>(i) - y.template at<float>(i));
  return z;
}
[[maybe_unused]] __m256 _mm256_sub_ps(__m256 x, __m256 y) { return difference_of_floats(x, y); }
[[maybe_unused]] __m512 _mm512_sub_ps(__m512 x, __m512 y) { return difference_of_floats(x, y); }

template <int Bytes>
Reg<Bytes> shift_right32(const Reg<Bytes>& x, unsigned count) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 4; ++i) z.set(i, x.template at<uint32_t>(i) >> count);
  return z;
}
[[maybe_unused]] __m256i _mm256_srli_epi32(__m256i x, int n) { return shift_right32(x, unsigned(n)); }
[[maybe_unused]] __m512i _mm512_srli_epi32(__m512i x, unsigned n) { return shift_right32(x, n); }

// vpermps: only the lowest 4 bits of an index count
[[maybe_unused]] __m512 _mm512_permutexvar_ps(__m512i index, __m512 x) {
  __m512 z;
  for (int i = 0; i < 16; ++i) z.set(i, x.at<float>(int(index.at<uint32_t>(i) & 15)));
  return z;
}

// float16 → float32, exact
[[maybe_unused]] __m512 _mm512_cvtph_ps(__m256i x) {
  __m512 z;
  for (int i = 0; i < 16; ++i) {
    const uint32_t half = x.at<uint16_t>(i), sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
    const bool special = rest >= 0x7C00u;  // infinite or NaN
    const uint32_t bits = rest << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    uint32_t result;
    memcpy(&result, &value, 4);
    if (special) result = 0x7F800000u | bits;
    z.set(i, result | sign);
  }
  return z;
}

[[maybe_unused]] __m512i _mm512_permutex2var_epi16(__m512i x, __m512i index, __m512i y) {
  __m512i z;
  for (int i = 0; i < 32; ++i) {
    const int from = index.at<uint16_t>(i) & 63;
    z.set(i, from < 32 ? x.at<uint16_t>(from) : y.at<uint16_t>(from - 32));
  }
  return z;
}

// To bfloat16, half to even: the second operand below. Subnormals are zero, NaNs quiet.
struct __m512bh {
  uint16_t at[32];
};
uint16_t bfloat16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return uint16_t(bits >> 16 | 0x40);
  if ((bits & 0x7F800000) == 0) return uint16_t(bits >> 31 << 15);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
[[maybe_unused]] __m512bh _mm512_cvtne2ps_pbh(__m512 above, __m512 below) {
  __m512bh z;
  for (int i = 0; i < 16; ++i)
    z.at[i] = bfloat16_of(below.at<float>(i)), z.at[16 + i] = bfloat16_of(above.at<float>(i));
  return z;
}

}  // namespace
