// linear, weights of int4.h, x86_avx2: exact vpmaddubsw, which never saturates on codes of 4 bits.
//
// A pair of products is at most 2·15·255 = 7650 in magnitude, four of them 30 600 < 2¹⁵: a unit of 16 k is summed in 16
// bits, 4 vpmaddubsw and 3 vpaddw, and widened once, vpmaddwd with ones and vpaddd. Nine instructions for what four
// products widened one by one cost in twelve.
// A code of 8 bits is two of 4, low + 16·high: twice the products, and the high ones are weighed where they are widened.
// Why not vpmaddwd of bytes widened to 16 bits: 7 instructions for 4 products of 8 columns, activations included, for 5.
// Why 4×16 in passes of 8 columns: 4 sums in 16 bits, 4 in 32 and 4 floats, a line, a plane, a mask, ones.
// Contract and drawing: int4_direct.h.
#define QK_ISA x86_avx2
#include "lanes_avx2.h"
#include "int4_ymm.h"

namespace qk {
namespace x86_avx2 {
namespace {

constexpr double kFloatGops = 40, kGops = 130, kCallUs = 0.1, kGbS = 20;

struct Ymm : YmmLanes {
  struct Part {
    Reg low, high;  // high: of 8 bits only
  };
  static constexpr int kMaxRows = 4, kMaxSums = 4, kFloatRows = 2;
  static constexpr bool kOneSigned = false, kSplits = false;
  template <bool ASigned>
  static void add_pairs(Reg& part, Reg nibbles, Reg a, int quad) {
    const Reg pairs = ASigned ? _mm256_maddubs_epi16(nibbles, a) : _mm256_maddubs_epi16(a, nibbles);
    part = quad ? _mm256_add_epi16(part, pairs) : pairs;
  }
  template <bool ASigned, int Bits>
  static void dot(Reg&, Part& part, Reg w, Reg a, int quad) {
    add_pairs<ASigned>(part.low, Bits == 8 ? plane<4>(w, 0) : w, a, quad);
    if (Bits == 8) add_pairs<ASigned>(part.high, plane<4>(w, 1), a, quad);
  }
  template <int Bits>
  static void close(Reg& acc, Part& part) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(part.low, _mm256_set1_epi16(1)));
    if (Bits == 8) acc = _mm256_add_epi32(acc, _mm256_madd_epi16(part.high, _mm256_set1_epi16(16)));
  }

  template <int Bits>
  static Float value(Reg x, int shift) {
    const Reg code = _mm256_and_si256(_mm256_srli_epi32(x, shift), _mm256_set1_epi32((1 << Bits) - 1));
    if (Bits == 8) return _mm256_castsi256_ps(_mm256_or_si256(code, _mm256_set1_epi32(0x4B000000)));
    return _mm256_cvtepi32_ps(code);
  }
  static Float sub_float(Float x, Float y) { return _mm256_sub_ps(x, y); }
  static Float add_float(Float x, Float y) { return _mm256_add_ps(x, y); }
  static Float splat_float(float x) { return _mm256_set1_ps(x); }
};

}  // namespace

QK_INT4_ROWS(Ymm, "4x16", QK_FLOAT_ROWS(Ymm, "2x16"))

}  // namespace x86_avx2
}  // namespace qk
