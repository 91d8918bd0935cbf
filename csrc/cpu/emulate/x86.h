// The intrinsics that the kernels use, in plain C++: the same names, the same results, any CPU, no speed.
//
// Only for the test module `_emulated`: a kernel for an instruction set that this machine lacks is still executed, from
// its own source, and compared with the reference bit for bit. Register contents are byte arrays; a tile load or store
// touches exactly the bytes that the hardware would, so that guard pages and sanitizers see an overrun.
// Source of every meaning: Intel Intrinsics Guide; tiles: Intel ISA Extensions Reference, chapter 3.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define QK_KEEP(reg) __asm__ volatile("" : "+m"(reg))
#define QK_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

namespace {

template <int Bytes>
struct Reg {
  alignas(Bytes) uint8_t bytes[Bytes];
  template <class T>
  T at(int i) const {
    T x;
    memcpy(&x, bytes + i * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  void set(int i, T x) {
    memcpy(bytes + i * sizeof(T), &x, sizeof(T));
  }
};

template <int Bytes>
Reg<Bytes> load(const void* p) {
  Reg<Bytes> x;
  memcpy(x.bytes, p, Bytes);
  return x;
}

template <class T, int Bytes>
Reg<Bytes> splat(T value) {
  Reg<Bytes> x;
  for (int i = 0; i < Bytes / int(sizeof(T)); ++i) x.set(i, value);
  return x;
}

template <int Bytes>
Reg<Bytes> add32(const Reg<Bytes>& x, const Reg<Bytes>& y) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 4; ++i) z.set(i, x.template at<uint32_t>(i) + y.template at<uint32_t>(i));
  return z;
}

// vpmaddwd
template <int Bytes>
Reg<Bytes> madd16(const Reg<Bytes>& x, const Reg<Bytes>& y) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 4; ++i) {
    const uint32_t low = uint32_t(int32_t(x.template at<int16_t>(2 * i)) * y.template at<int16_t>(2 * i));
    const uint32_t high = uint32_t(int32_t(x.template at<int16_t>(2 * i + 1)) * y.template at<int16_t>(2 * i + 1));
    z.set(i, low + high);
  }
  return z;
}

// vpdpbusd
template <int Bytes>
Reg<Bytes> dot_us(const Reg<Bytes>& acc, const Reg<Bytes>& u, const Reg<Bytes>& s) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes / 4; ++i) {
    uint32_t sum = acc.template at<uint32_t>(i);
    for (int t = 0; t < 4; ++t)
      sum += uint32_t(int32_t(u.template at<uint8_t>(4 * i + t)) * s.template at<int8_t>(4 * i + t));
    z.set(i, sum);
  }
  return z;
}

// vpmovsxbw, vpmovzxbw
template <class Byte, int Bytes>
Reg<2 * Bytes> widen16(const Reg<Bytes>& x) {
  Reg<2 * Bytes> z;
  for (int i = 0; i < Bytes; ++i) z.set(i, int16_t(x.template at<Byte>(i)));
  return z;
}

template <int Bytes>
Reg<Bytes> xor_bits(const Reg<Bytes>& x, const Reg<Bytes>& y) {
  Reg<Bytes> z;
  for (int i = 0; i < Bytes; ++i) z.bytes[i] = x.bytes[i] ^ y.bytes[i];
  return z;
}

// vpunpck…: elements of T from the low or high halves of each 128-bit part, alternately
template <class T, int Bytes>
Reg<Bytes> unpack(const Reg<Bytes>& x, const Reg<Bytes>& y, bool high) {
  constexpr int kPart = 16 / int(sizeof(T));
  Reg<Bytes> z;
  for (int part = 0; part < Bytes / 16; ++part)
    for (int i = 0; i < kPart / 2; ++i) {
      const int from = part * kPart + (high ? kPart / 2 : 0) + i;
      z.set(part * kPart + 2 * i, x.template at<T>(from));
      z.set(part * kPart + 2 * i + 1, y.template at<T>(from));
    }
  return z;
}

using __m128i = Reg<16>;
using __m256i = Reg<32>;
using __m512i = Reg<64>;

[[maybe_unused]] __m128i _mm_loadu_si128(const __m128i* p) { return load<16>(p); }
[[maybe_unused]] void _mm_storeu_si128(__m128i* p, __m128i x) { memcpy(p, x.bytes, 16); }

[[maybe_unused]] __m256i _mm256_setzero_si256() { return splat<uint32_t, 32>(0); }
[[maybe_unused]] __m256i _mm256_set1_epi32(int x) { return splat<int, 32>(x); }
[[maybe_unused]] __m256i _mm256_set1_epi64x(long long x) { return splat<long long, 32>(x); }
[[maybe_unused]] __m256i _mm256_loadu_si256(const __m256i* p) { return load<32>(p); }
[[maybe_unused]] void _mm256_storeu_si256(__m256i* p, __m256i x) { memcpy(static_cast<void*>(p), x.bytes, 32); }
[[maybe_unused]] __m256i _mm256_cvtepi8_epi16(__m128i x) { return widen16<int8_t>(x); }
[[maybe_unused]] __m256i _mm256_cvtepu8_epi16(__m128i x) { return widen16<uint8_t>(x); }
[[maybe_unused]] __m256i _mm256_madd_epi16(__m256i x, __m256i y) { return madd16(x, y); }
[[maybe_unused]] __m256i _mm256_add_epi32(__m256i x, __m256i y) { return add32(x, y); }
[[maybe_unused]] __m256i _mm256_dpbusd_avx_epi32(__m256i acc, __m256i u, __m256i s) { return dot_us(acc, u, s); }

// Adds neighbours, within each 128-bit half: x0+x1 x2+x3 y0+y1 y2+y3 | the same of the upper halves
[[maybe_unused]] __m256i _mm256_hadd_epi32(__m256i x, __m256i y) {
  __m256i z;
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 2; ++i) {
      const int from = 4 * half + 2 * i;
      z.set(4 * half + i, x.at<uint32_t>(from) + x.at<uint32_t>(from + 1));
      z.set(4 * half + 2 + i, y.at<uint32_t>(from) + y.at<uint32_t>(from + 1));
    }
  return z;
}

[[maybe_unused]] __m256i _mm256_permute4x64_epi64(__m256i x, int order) {
  __m256i z;
  for (int i = 0; i < 4; ++i) z.set(i, x.at<uint64_t>(order >> (2 * i) & 3));
  return z;
}

[[maybe_unused]] __m256i _mm256_xor_si256(__m256i x, __m256i y) { return xor_bits(x, y); }
[[maybe_unused]] __m256i _mm256_unpacklo_epi8(__m256i x, __m256i y) { return unpack<uint8_t>(x, y, false); }
[[maybe_unused]] __m256i _mm256_unpackhi_epi8(__m256i x, __m256i y) { return unpack<uint8_t>(x, y, true); }
[[maybe_unused]] __m256i _mm256_unpacklo_epi16(__m256i x, __m256i y) { return unpack<uint16_t>(x, y, false); }
[[maybe_unused]] __m256i _mm256_unpackhi_epi16(__m256i x, __m256i y) { return unpack<uint16_t>(x, y, true); }

[[maybe_unused]] __m512i _mm512_setzero_si512() { return splat<uint32_t, 64>(0); }
[[maybe_unused]] __m512i _mm512_set1_epi32(int x) { return splat<int, 64>(x); }
[[maybe_unused]] __m512i _mm512_set1_epi64(long long x) { return splat<long long, 64>(x); }
[[maybe_unused]] __m512i _mm512_loadu_si512(const void* p) { return load<64>(p); }
[[maybe_unused]] void _mm512_storeu_si512(void* p, __m512i x) { memcpy(p, x.bytes, 64); }
using __mmask16 = uint16_t;
[[maybe_unused]] void _mm512_mask_storeu_epi32(void* p, __mmask16 lanes, __m512i x) {
  for (int i = 0; i < 16; ++i)
    if (lanes >> i & 1) memcpy(static_cast<uint8_t*>(p) + 4 * i, x.bytes + 4 * i, 4);
}
[[maybe_unused]] __m512i _mm512_cvtepi8_epi16(__m256i x) { return widen16<int8_t>(x); }
[[maybe_unused]] __m512i _mm512_cvtepu8_epi16(__m256i x) { return widen16<uint8_t>(x); }
[[maybe_unused]] __m512i _mm512_madd_epi16(__m512i x, __m512i y) { return madd16(x, y); }
[[maybe_unused]] __m512i _mm512_add_epi32(__m512i x, __m512i y) { return add32(x, y); }
[[maybe_unused]] __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i u, __m512i s) { return dot_us(acc, u, s); }

[[maybe_unused]] __m512i _mm512_xor_si512(__m512i x, __m512i y) { return xor_bits(x, y); }
[[maybe_unused]] __m512i _mm512_unpacklo_epi8(__m512i x, __m512i y) { return unpack<uint8_t>(x, y, false); }
[[maybe_unused]] __m512i _mm512_unpackhi_epi8(__m512i x, __m512i y) { return unpack<uint8_t>(x, y, true); }
[[maybe_unused]] __m512i _mm512_unpacklo_epi16(__m512i x, __m512i y) { return unpack<uint16_t>(x, y, false); }
[[maybe_unused]] __m512i _mm512_unpackhi_epi16(__m512i x, __m512i y) { return unpack<uint16_t>(x, y, true); }

template <class... Ints>
[[maybe_unused]] __m512i _mm512_setr_epi32(Ints... lanes) {
  static_assert(sizeof...(lanes) == 16, "one for each lane");
  const int values[] = {lanes...};
  return load<64>(values);
}

[[maybe_unused]] __m512i _mm512_permutex2var_epi32(__m512i x, __m512i index, __m512i y) {
  __m512i z;
  for (int i = 0; i < 16; ++i) {
    const uint32_t from = index.at<uint32_t>(i) & 31;
    z.set(i, from < 16 ? x.at<uint32_t>(int(from)) : y.at<uint32_t>(int(from) - 16));
  }
  return z;
}
[[maybe_unused]] __m512i _mm512_permutex2var_epi8(__m512i x, __m512i index, __m512i y) {
  __m512i z;
  for (int i = 0; i < 64; ++i) {
    const int from = index.at<uint8_t>(i) & 127;
    z.set(i, from < 64 ? x.at<uint8_t>(from) : y.at<uint8_t>(from - 64));
  }
  return z;
}

}  // namespace

#include "x86_lanes.h"
#include "x86_int4.h"

namespace {

// ---- AMX: eight tiles of up to 16 rows × 64 bytes. Using an unconfigured tile is a fault, as on the hardware.
struct Tiles {
  int rows[8], row_bytes[8];
  bool configured;
  uint8_t data[8][16][64];
};
thread_local Tiles tiles = {};

[[maybe_unused]] void require(bool legal) {
  if (!legal) abort();  // #UD or #GP
}

[[maybe_unused]] void qk_tile_loadconfig(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  require(bytes[0] == 1);
  memset(&tiles, 0, sizeof tiles);
  for (int t = 0; t < 8; ++t) {
    uint16_t width;
    memcpy(&width, bytes + 16 + 2 * t, 2);
    tiles.row_bytes[t] = width;
    tiles.rows[t] = bytes[48 + t];
    require(width <= 64 && tiles.rows[t] <= 16);
  }
  tiles.configured = true;
}

[[maybe_unused]] void _tile_release() { memset(&tiles, 0, sizeof tiles); }

[[maybe_unused]] void _tile_zero(int t) {
  require(tiles.configured && tiles.rows[t] > 0);
  memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

[[maybe_unused]] void _tile_loadd(int t, const void* base, ptrdiff_t stride) {
  _tile_zero(t);
  for (int r = 0; r < tiles.rows[t]; ++r)
    memcpy(tiles.data[t][r], static_cast<const uint8_t*>(base) + r * stride, size_t(tiles.row_bytes[t]));
}

[[maybe_unused]] void _tile_stream_loadd(int t, const void* base, ptrdiff_t stride) { _tile_loadd(t, base, stride); }

[[maybe_unused]] void _tile_stored(int t, void* base, ptrdiff_t stride) {
  require(tiles.configured && tiles.rows[t] > 0);
  for (int r = 0; r < tiles.rows[t]; ++r)
    memcpy(static_cast<uint8_t*>(base) + r * stride, tiles.data[t][r], size_t(tiles.row_bytes[t]));
}

template <class A, class B>
void tile_dot(int c, int a, int b) {
  require(tiles.configured && c != a && c != b && a != b);
  require(tiles.rows[c] == tiles.rows[a] && tiles.row_bytes[c] == tiles.row_bytes[b]);
  require(tiles.row_bytes[a] == 4 * tiles.rows[b]);
  for (int m = 0; m < tiles.rows[c]; ++m)
    for (int n = 0; n < tiles.row_bytes[c] / 4; ++n) {
      uint32_t sum;
      memcpy(&sum, &tiles.data[c][m][4 * n], 4);
      for (int k = 0; k < tiles.row_bytes[a]; ++k)
        sum += uint32_t(int32_t(A(tiles.data[a][m][k])) * B(tiles.data[b][k / 4][4 * n + k % 4]));
      memcpy(&tiles.data[c][m][4 * n], &sum, 4);
    }
}

[[maybe_unused]] void _tile_dpbssd(int c, int a, int b) { tile_dot<int8_t, int8_t>(c, a, b); }
[[maybe_unused]] void _tile_dpbsud(int c, int a, int b) { tile_dot<int8_t, uint8_t>(c, a, b); }
[[maybe_unused]] void _tile_dpbusd(int c, int a, int b) { tile_dot<uint8_t, int8_t>(c, a, b); }
[[maybe_unused]] void _tile_dpbuud(int c, int a, int b) { tile_dot<uint8_t, uint8_t>(c, a, b); }

// Pairs of bfloat16: a chain of fma of the first, one of the second, their sum, added; subnormals count as zero.
[[maybe_unused]] void _tile_dpbf16ps(int c, int a, int b) {
  require(tiles.configured && c != a && c != b && a != b);
  require(tiles.rows[c] == tiles.rows[a] && tiles.row_bytes[c] == tiles.row_bytes[b]);
  require(tiles.row_bytes[a] == 4 * tiles.rows[b]);
  const auto number = [](const uint8_t* two) {
    uint16_t bits;
    memcpy(&bits, two, 2);
    const uint32_t wide = (bits & 0x7F80) == 0 ? uint32_t(bits >> 15) << 31 : uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
  };
  for (int m = 0; m < tiles.rows[c]; ++m)
    for (int n = 0; n < tiles.row_bytes[c] / 4; ++n) {
      float sum, chain[2] = {0, 0};
      for (int k = 0; k < tiles.row_bytes[a] / 2; ++k)
        chain[k % 2] = __builtin_fmaf(number(&tiles.data[a][m][2 * k]),
                                      number(&tiles.data[b][k / 2][4 * n + k % 2 * 2]), chain[k % 2]);
      memcpy(&sum, &tiles.data[c][m][4 * n], 4);
      sum += chain[0] + chain[1];
      memcpy(&tiles.data[c][m][4 * n], &sum, 4);
    }
}

}  // namespace
