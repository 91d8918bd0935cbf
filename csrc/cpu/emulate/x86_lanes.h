// The intrinsics of the elementwise kernels, in plain C++: the second half of emulate/x86.h, which includes it.
#pragma once

namespace {

template <int Bytes, class T>
struct Floats : Reg<Bytes> {};
using __m256 = Floats<32, float>;
using __m512 = Floats<64, float>;
using __m256d = Floats<32, double>;
using __m512d = Floats<64, double>;
using __mmask8 = uint8_t;
using __mmask16 = uint16_t;
using __mmask32 = uint32_t;
using __mmask64 = uint64_t;

// ---------------------------------------------------------------- lane by lane

template <class T, class R, class Op>
R map1(const R& x, Op op) {
  R z;
  for (int i = 0; i < int(sizeof(R) / sizeof(T)); ++i) z.set(i, T(op(x.template at<T>(i))));
  return z;
}

template <class T, class R, class Op>
R map2(const R& x, const R& y, Op op) {
  R z;
  for (int i = 0; i < int(sizeof(R) / sizeof(T)); ++i) z.set(i, T(op(x.template at<T>(i), y.template at<T>(i))));
  return z;
}

template <class To, class R>
To cast(const R& x) {
  static_assert(sizeof(To) == sizeof(R), "the same bits");
  To z;
  memcpy(&z, &x, sizeof z);
  return z;
}

template <class To, class T>
To all(T value) {
  To z;
  for (int i = 0; i < int(sizeof(To) / sizeof(T)); ++i) z.set(i, value);
  return z;
}

// n lanes of From → To, each by op
template <class From, class To, class R, class S, class Op>
R convert(const S& x, Op op) {
  R z;
  for (int i = 0; i < int(sizeof(R) / sizeof(To)); ++i) z.set(i, To(op(x.template at<From>(i))));
  return z;
}

// Reads or writes the lanes of a mask and nothing else.
template <class R, class T>
R masked_load(uint64_t mask, const T* p) {
  R z;
  for (int i = 0; i < int(sizeof(R) / sizeof(T)); ++i) {
    T value = 0;
    if (mask >> i & 1) memcpy(&value, p + i, sizeof(T));
    z.set(i, value);
  }
  return z;
}

template <class T, class R>
void masked_store(void* p, uint64_t mask, const R& x) {
  for (int i = 0; i < int(sizeof(R) / sizeof(T)); ++i) {
    const T value = x.template at<T>(i);
    if (mask >> i & 1) memcpy(static_cast<T*>(p) + i, &value, sizeof(T));
  }
}

// Lane i takes part where the top bit of mask lane i is set.
[[maybe_unused]] unsigned top_bits(const __m256i& mask) {
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) bits |= unsigned(mask.at<uint32_t>(i) >> 31) << i;
  return bits;
}

template <class To, class From>
To saturated(From x) {
  const long low = To(-1) < To(0) ? -(1l << (8 * sizeof(To) - 1)) : 0, high = low + (1l << (8 * sizeof(To))) - 1;
  return To(x < low ? low : x > high ? high : x);
}

// vpack*: within each 128-bit lane, x's and then y's elements, saturated
template <class From, class To, class R>
R packed(const R& x, const R& y) {
  R z;
  const int half = 16 / int(sizeof(From));
  for (int lane = 0; lane < int(sizeof(R)) / 16; ++lane)
    for (int i = 0; i < half; ++i) {
      z.set(2 * half * lane + i, saturated<To>(x.template at<From>(half * lane + i)));
      z.set(2 * half * lane + half + i, saturated<To>(y.template at<From>(half * lane + i)));
    }
  return z;
}

template <class T, class R>
R permuted(const R& x, const R& index) {
  R z;
  constexpr uint32_t kLanes = sizeof(R) / sizeof(T);
  for (int i = 0; i < int(kLanes); ++i) z.set(i, x.template at<T>(int(index.template at<uint32_t>(i) % kLanes)));
  return z;
}

// vpmuldq: the low halves of 64-bit lanes, signed
template <class R>
R multiplied_even(const R& x, const R& y) {
  R z;
  for (int i = 0; i < int(sizeof(R)) / 8; ++i)
    z.set(i, int64_t(x.template at<int32_t>(2 * i)) * y.template at<int32_t>(2 * i));
  return z;
}

[[maybe_unused]] int32_t converted(double x) {  // 0x80000000 where it does not fit, or is NaN
  return x >= -2147483648.0 && x <= 2147483647.0 ? int32_t(x) : int32_t(0x80000000);
}

template <class T>
T fused(T x, T y, T z) {
  return T(__builtin_fmaf(x, y, z));
}

template <class R>
R fmadd(const R& x, const R& y, const R& z, bool negated) {
  R out;
  for (int i = 0; i < int(sizeof(R)) / 4; ++i) {
    const float a = x.template at<float>(i);
    out.set(i, fused(negated ? -a : a, y.template at<float>(i), z.template at<float>(i)));
  }
  return out;
}

const auto kAdd = [](auto x, auto y) { return x + y; };
const auto kSub = [](auto x, auto y) { return x - y; };
const auto kMul = [](auto x, auto y) { return x * y; };
const auto kDiv = [](auto x, auto y) { return x / y; };
const auto kMin = [](auto x, auto y) { return x < y ? x : y; };  // the second operand where one is NaN, or both are 0
const auto kMax = [](auto x, auto y) { return x > y ? x : y; };
const auto kAnd = [](auto x, auto y) { return x & y; };
const auto kOr = [](auto x, auto y) { return x | y; };
const auto kSame = [](auto x) { return x; };
const auto kRint = [](float x) { return converted(__builtin_rintf(x)); };
const auto kTrunc = [](double x) { return converted(__builtin_trunc(x)); };
const auto kShiftBy = [](int32_t x, int32_t by) { return x >> (uint32_t(by) > 31 ? 31 : by); };

struct Eight {
  int lane[8];
};

// ---------------------------------------------------------------- names and meanings

#define QK_OF(type, name, parameters, value) \
  [[maybe_unused]] type name parameters { return value; }
#define QK_BOTH(name, narrow, wide, T, op)                              \
  QK_OF(narrow, _mm256_##name, (narrow x, narrow y), map2<T>(x, y, op)) \
  QK_OF(wide, _mm512_##name, (wide x, wide y), map2<T>(x, y, op))

QK_BOTH(add_ps, __m256, __m512, float, kAdd)
QK_BOTH(mul_ps, __m256, __m512, float, kMul)
QK_BOTH(div_ps, __m256, __m512, float, kDiv)
QK_BOTH(min_ps, __m256, __m512, float, kMin)
QK_BOTH(max_ps, __m256, __m512, float, kMax)
QK_BOTH(add_pd, __m256d, __m512d, double, kAdd)
QK_BOTH(mul_pd, __m256d, __m512d, double, kMul)
QK_BOTH(min_pd, __m256d, __m512d, double, kMin)
QK_BOTH(max_pd, __m256d, __m512d, double, kMax)
QK_BOTH(sub_epi32, __m256i, __m512i, uint32_t, kSub)
QK_BOTH(add_epi64, __m256i, __m512i, uint64_t, kAdd)
QK_BOTH(min_epi32, __m256i, __m512i, int32_t, kMin)
QK_BOTH(max_epi32, __m256i, __m512i, int32_t, kMax)
QK_BOTH(srav_epi32, __m256i, __m512i, int32_t, kShiftBy)
QK_OF(__m256i, _mm256_and_si256, (__m256i x, __m256i y), map2<uint64_t>(x, y, kAnd))
QK_OF(__m512i, _mm512_and_si512, (__m512i x, __m512i y), map2<uint64_t>(x, y, kAnd))
QK_OF(__m512i, _mm512_or_si512, (__m512i x, __m512i y), map2<uint64_t>(x, y, kOr))
QK_OF(__m256d, _mm256_and_pd, (__m256d x, __m256d y), map2<uint64_t>(x, y, kAnd))
QK_OF(__m256d, _mm256_or_pd, (__m256d x, __m256d y), map2<uint64_t>(x, y, kOr))
QK_OF(__m256i, _mm256_cmpgt_epi32, (__m256i x, __m256i y),
      map2<int32_t>(x, y, [](int32_t a, int32_t b) { return a > b ? -1 : 0; }))
QK_OF(__m256, _mm256_fmadd_ps, (__m256 x, __m256 y, __m256 z), fmadd(x, y, z, false))
QK_OF(__m512, _mm512_fmadd_ps, (__m512 x, __m512 y, __m512 z), fmadd(x, y, z, false))
QK_OF(__m256, _mm256_fnmadd_ps, (__m256 x, __m256 y, __m256 z), fmadd(x, y, z, true))
QK_OF(__m512, _mm512_fnmadd_ps, (__m512 x, __m512 y, __m512 z), fmadd(x, y, z, true))
QK_OF(__m256i, _mm256_mul_epi32, (__m256i x, __m256i y), multiplied_even(x, y))
QK_OF(__m512i, _mm512_mul_epi32, (__m512i x, __m512i y), multiplied_even(x, y))
QK_OF(__m256i, _mm256_srli_epi64, (__m256i x, int by), map1<uint64_t>(x, [by](uint64_t v) { return v >> by; }))
QK_OF(__m512i, _mm512_srli_epi64, (__m512i x, int by), map1<uint64_t>(x, [by](uint64_t v) { return v >> by; }))
QK_OF(__m256i, _mm256_slli_epi64, (__m256i x, int by), map1<uint64_t>(x, [by](uint64_t v) { return v << by; }))
QK_OF(__m512i, _mm512_slli_epi64, (__m512i x, int by), map1<uint64_t>(x, [by](uint64_t v) { return v << by; }))

QK_OF(__m256i, _mm256_adds_epi16, (__m256i x, __m256i y),
      map2<int16_t>(x, y, [](int a, int b) { return saturated<int16_t>(a + b); }))
QK_OF(__m512i, _mm512_adds_epi16, (__m512i x, __m512i y),
      map2<int16_t>(x, y, [](int a, int b) { return saturated<int16_t>(a + b); }))
QK_OF(__m256i, _mm256_max_epi8, (__m256i x, __m256i y),
      (map2<int8_t>(x, y, [](int a, int b) { return a > b ? a : b; })))
QK_OF(__m256i, _mm256_max_epu8, (__m256i x, __m256i y),
      (map2<uint8_t>(x, y, [](int a, int b) { return a > b ? a : b; })))
QK_OF(__m512i, _mm512_max_epi8, (__m512i x, __m512i y),
      (map2<int8_t>(x, y, [](int a, int b) { return a > b ? a : b; })))
QK_OF(__m512i, _mm512_max_epu8, (__m512i x, __m512i y),
      (map2<uint8_t>(x, y, [](int a, int b) { return a > b ? a : b; })))
QK_OF(__m512i, _mm512_min_epi8, (__m512i x, __m512i y),
      (map2<int8_t>(x, y, [](int a, int b) { return a < b ? a : b; })))
QK_OF(__m512i, _mm512_min_epu8, (__m512i x, __m512i y),
      (map2<uint8_t>(x, y, [](int a, int b) { return a < b ? a : b; })))
QK_OF(__m256i, _mm256_set1_epi16, (short x), all<__m256i>(int16_t(x)))
QK_OF(__m512i, _mm512_set1_epi16, (short x), all<__m512i>(int16_t(x)))
QK_OF(__m256, _mm256_set1_ps, (float x), all<__m256>(x))
QK_OF(__m512, _mm512_set1_ps, (float x), all<__m512>(x))
QK_OF(__m256d, _mm256_set1_pd, (double x), all<__m256d>(x))
QK_OF(__m512d, _mm512_set1_pd, (double x), all<__m512d>(x))
QK_OF(__m256i, _mm256_setr_epi32, (int a, int b, int c, int d, int e, int f, int g, int h),
      (cast<__m256i>(Eight{{a, b, c, d, e, f, g, h}})))

QK_OF(__m256i, _mm256_castps_si256, (__m256 x), cast<__m256i>(x))
QK_OF(__m512i, _mm512_castps_si512, (__m512 x), cast<__m512i>(x))
QK_OF(__m512i, _mm512_castpd_si512, (__m512d x), cast<__m512i>(x))
QK_OF(__m512d, _mm512_castsi512_pd, (__m512i x), cast<__m512d>(x))
QK_OF(__m128i, _mm256_castsi256_si128, (__m256i x), load<16>(x.bytes))
QK_OF(__m256i, _mm512_castsi512_si256, (__m512i x), load<32>(x.bytes))
QK_OF(__m128i, _mm256_extracti128_si256, (__m256i x, int half), load<16>(x.bytes + 16 * half))
QK_OF(__m256i, _mm512_extracti64x4_epi64, (__m512i x, int half), load<32>(x.bytes + 32 * half))

template <class Wide, class Half>
Wide inserted(Wide x, const Half& y, int half) {
  memcpy(x.bytes + int(sizeof(Half)) * half, y.bytes, sizeof(Half));
  return x;
}
QK_OF(__m256i, _mm256_castsi128_si256, (__m128i x), inserted(_mm256_setzero_si256(), x, 0))
QK_OF(__m512i, _mm512_castsi256_si512, (__m256i x), inserted(_mm512_setzero_si512(), x, 0))
QK_OF(__m256i, _mm256_inserti128_si256, (__m256i x, __m128i y, int half), inserted(x, y, half))
QK_OF(__m512i, _mm512_inserti64x4, (__m512i x, __m256i y, int half), inserted(x, y, half))

QK_OF(__m256, _mm256_cvtepi32_ps, (__m256i x), (convert<int32_t, float, __m256>(x, kSame)))
QK_OF(__m512, _mm512_cvtepi32_ps, (__m512i x), (convert<int32_t, float, __m512>(x, kSame)))
QK_OF(__m256i, _mm256_cvtps_epi32, (__m256 x), (convert<float, int32_t, __m256i>(x, kRint)))
QK_OF(__m512i, _mm512_cvtps_epi32, (__m512 x), (convert<float, int32_t, __m512i>(x, kRint)))
QK_OF(__m256d, _mm256_cvtepi32_pd, (__m128i x), (convert<int32_t, double, __m256d>(x, kSame)))
QK_OF(__m512d, _mm512_cvtepi32_pd, (__m256i x), (convert<int32_t, double, __m512d>(x, kSame)))
QK_OF(__m128i, _mm256_cvttpd_epi32, (__m256d x), (convert<double, int32_t, __m128i>(x, kTrunc)))
QK_OF(__m256i, _mm512_cvttpd_epi32, (__m512d x), (convert<double, int32_t, __m256i>(x, kTrunc)))
QK_OF(__m256i, _mm256_cvtepi8_epi32, (__m128i x), (convert<int8_t, int32_t, __m256i>(x, kSame)))
QK_OF(__m256i, _mm256_cvtepu8_epi32, (__m128i x), (convert<uint8_t, int32_t, __m256i>(x, kSame)))
QK_OF(__m256i, _mm256_cvtepi16_epi32, (__m128i x), (convert<int16_t, int32_t, __m256i>(x, kSame)))
QK_OF(__m256i, _mm256_cvtepu16_epi32, (__m128i x), (convert<uint16_t, int32_t, __m256i>(x, kSame)))
QK_OF(__m512i, _mm512_cvtepi8_epi32, (__m128i x), (convert<int8_t, int32_t, __m512i>(x, kSame)))
QK_OF(__m512i, _mm512_cvtepu8_epi32, (__m128i x), (convert<uint8_t, int32_t, __m512i>(x, kSame)))
QK_OF(__m512i, _mm512_cvtepi16_epi32, (__m256i x), (convert<int16_t, int32_t, __m512i>(x, kSame)))
QK_OF(__m512i, _mm512_cvtepu16_epi32, (__m256i x), (convert<uint16_t, int32_t, __m512i>(x, kSame)))
QK_OF(__m128i, _mm512_cvtsepi32_epi8, (__m512i x), (convert<int32_t, int8_t, __m128i>(x, saturated<int8_t, int32_t>)))
QK_OF(__m128i, _mm512_cvtusepi32_epi8, (__m512i x),
      (convert<uint32_t, uint8_t, __m128i>(x, saturated<uint8_t, uint32_t>)))
QK_OF(__m256i, _mm512_cvtsepi32_epi16, (__m512i x),
      (convert<int32_t, int16_t, __m256i>(x, saturated<int16_t, int32_t>)))
QK_OF(__m256i, _mm512_cvtusepi32_epi16, (__m512i x),
      (convert<uint32_t, uint16_t, __m256i>(x, saturated<uint16_t, uint32_t>)))

QK_OF(__m256i, _mm256_packs_epi32, (__m256i x, __m256i y), (packed<int32_t, int16_t>(x, y)))
QK_OF(__m512i, _mm512_packs_epi32, (__m512i x, __m512i y), (packed<int32_t, int16_t>(x, y)))
QK_OF(__m256i, _mm256_packus_epi32, (__m256i x, __m256i y), (packed<int32_t, uint16_t>(x, y)))
QK_OF(__m512i, _mm512_packus_epi32, (__m512i x, __m512i y), (packed<int32_t, uint16_t>(x, y)))
QK_OF(__m256i, _mm256_packs_epi16, (__m256i x, __m256i y), (packed<int16_t, int8_t>(x, y)))
QK_OF(__m512i, _mm512_packs_epi16, (__m512i x, __m512i y), (packed<int16_t, int8_t>(x, y)))
QK_OF(__m256i, _mm256_packus_epi16, (__m256i x, __m256i y), (packed<int16_t, uint8_t>(x, y)))
QK_OF(__m512i, _mm512_packus_epi16, (__m512i x, __m512i y), (packed<int16_t, uint8_t>(x, y)))
QK_OF(__m256i, _mm256_permutevar8x32_epi32, (__m256i x, __m256i index), permuted<uint32_t>(x, index))
QK_OF(__m512i, _mm512_permutexvar_epi32, (__m512i index, __m512i x), permuted<uint32_t>(x, index))

[[maybe_unused]] __m256 _mm256_i32gather_ps(const float* table, __m256i at, int scale) {
  __m256 z;
  for (int i = 0; i < 8; ++i) z.set(i, table[at.at<int32_t>(i) * scale / 4]);
  return z;
}
[[maybe_unused]] __m512 _mm512_permutex2var_ps(__m512 x, __m512i at, __m512 y) {
  __m512 z;
  for (int i = 0; i < 16; ++i) {
    const int32_t j = at.at<int32_t>(i);
    z.set(i, (j & 16 ? y : x).at<float>(j & 15));
  }
  return z;
}

template <class R>
R blended(R x, const R& y, unsigned mask) {
  for (int i = 0; i < int(sizeof(R)) / 4; ++i)
    if (mask >> i & 1) x.set(i, y.template at<uint32_t>(i));
  return x;
}
QK_OF(__m256i, _mm256_blend_epi32, (__m256i x, __m256i y, int mask), blended(x, y, unsigned(mask)))
QK_OF(__m512i, _mm512_mask_blend_epi32, (__mmask16 mask, __m512i x, __m512i y), blended(x, y, mask))

QK_OF(__m256, _mm256_loadu_ps, (const float* p), (masked_load<__m256>(0xFF, p)))
QK_OF(__m512, _mm512_loadu_ps, (const float* p), (masked_load<__m512>(0xFFFF, p)))
QK_OF(__m256d, _mm256_loadu_pd, (const double* p), (masked_load<__m256d>(0xFF, p)))
QK_OF(__m512d, _mm512_loadu_pd, (const double* p), (masked_load<__m512d>(0xFF, p)))
QK_OF(__m128i, _mm_loadl_epi64, (const __m128i* p), (masked_load<__m128i>(0xFF, reinterpret_cast<const uint8_t*>(p))))
QK_OF(__m256, _mm256_maskload_ps, (const float* p, __m256i mask), (masked_load<__m256>(top_bits(mask), p)))
QK_OF(__m256i, _mm256_maskload_epi32, (const int* p, __m256i mask), (masked_load<__m256i>(top_bits(mask), p)))
QK_OF(__m512, _mm512_maskz_loadu_ps, (__mmask16 mask, const float* p), (masked_load<__m512>(mask, p)))
QK_OF(__m512d, _mm512_maskz_loadu_pd, (__mmask8 mask, const double* p), (masked_load<__m512d>(mask, p)))
QK_OF(__m512i, _mm512_maskz_loadu_epi32, (__mmask16 mask, const int32_t* p), (masked_load<__m512i>(mask, p)))
QK_OF(__m128i, _mm_maskz_loadu_epi8, (__mmask16 mask, const void* p),
      (masked_load<__m128i>(mask, static_cast<const uint8_t*>(p))))
QK_OF(__m512i, _mm512_maskz_loadu_epi8, (__mmask64 mask, const void* p),
      (masked_load<__m512i>(mask, static_cast<const uint8_t*>(p))))
QK_OF(__m256i, _mm256_maskz_loadu_epi8, (__mmask32 mask, const void* p),
      (masked_load<__m256i>(mask, static_cast<const uint8_t*>(p))))
QK_OF(__m256i, _mm256_maskz_loadu_epi16, (__mmask16 mask, const void* p),
      (masked_load<__m256i>(mask, static_cast<const uint16_t*>(p))))

QK_OF(void, _mm256_storeu_ps, (float* p, __m256 x), masked_store<float>(p, 0xFF, x))
QK_OF(void, _mm512_storeu_ps, (float* p, __m512 x), masked_store<float>(p, 0xFFFF, x))
QK_OF(void, _mm256_maskstore_ps, (float* p, __m256i mask, __m256 x), masked_store<float>(p, top_bits(mask), x))
QK_OF(void, _mm512_mask_storeu_ps, (float* p, __mmask16 mask, __m512 x), masked_store<float>(p, mask, x))
QK_OF(void, _mm_mask_storeu_epi8, (void* p, __mmask16 mask, __m128i x), masked_store<uint8_t>(p, mask, x))
QK_OF(void, _mm256_mask_storeu_epi8, (void* p, __mmask32 mask, __m256i x), masked_store<uint8_t>(p, mask, x))
QK_OF(void, _mm256_mask_storeu_epi16, (void* p, __mmask16 mask, __m256i x), masked_store<uint16_t>(p, mask, x))

// Streaming stores fault where they are not aligned.
template <class R>
void streamed(void* p, const R& x) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(R)) abort();
  memcpy(p, x.bytes, sizeof(R));
}
QK_OF(void, _mm256_stream_ps, (float* p, __m256 x), streamed(p, x))
QK_OF(void, _mm512_stream_ps, (float* p, __m512 x), streamed(p, x))
QK_OF(void, _mm256_stream_si256, (__m256i * p, __m256i x), streamed(p, x))
QK_OF(void, _mm512_stream_si512, (__m512i * p, __m512i x), streamed(p, x))
[[maybe_unused]] void _mm_sfence() {}

// ---------------------------------------------------------------- bytes by masks (lookup512.h)

using __mmask64 = uint64_t;

[[maybe_unused]] __m512i _mm512_broadcast_i32x4(__m128i x) {
  __m512i z;
  for (int i = 0; i < 64; ++i) z.set(i, x.at<uint8_t>(i % 16));
  return z;
}
[[maybe_unused]] __mmask64 _mm512_movepi8_mask(__m512i x) {
  __mmask64 mask = 0;
  for (int i = 0; i < 64; ++i) mask |= uint64_t(x.at<uint8_t>(i) >> 7) << i;
  return mask;
}
[[maybe_unused]] __m512i _mm512_mask_blend_epi8(__mmask64 mask, __m512i x, __m512i y) {
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) x.set(i, y.at<uint8_t>(i));
  return x;
}
// In each 16 bytes; an index with its highest bit set gives 0.
[[maybe_unused]] __m512i _mm512_shuffle_epi8(__m512i x, __m512i index) {
  __m512i z;
  for (int i = 0; i < 64; ++i) {
    const uint8_t at = index.at<uint8_t>(i);
    z.set(i, at & 0x80 ? uint8_t(0) : x.at<uint8_t>(i / 16 * 16 + (at & 15)));
  }
  return z;
}
QK_OF(__m512i, _mm512_mask_shuffle_epi8, (__m512i other, __mmask64 mask, __m512i x, __m512i index),
      _mm512_mask_blend_epi8(mask, other, _mm512_shuffle_epi8(x, index)))

#undef QK_OF
#undef QK_BOTH

}  // namespace
