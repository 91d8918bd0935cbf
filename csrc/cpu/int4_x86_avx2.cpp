// linear, 4- and 2-bit weights, x86_avx2: exact vpmaddubsw, which never saturates on codes this small.
//
// A pair of products is at most 2·15·255 = 7650 in magnitude, four of them 30 600 < 2¹⁵: a unit of 16 k is summed in 16
// bits, 4 vpmaddubsw and 3 vpaddw, and widened once, vpmaddwd with ones and vpaddd. Nine instructions for what four
// products widened one by one cost in twelve.
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
  using Part = Reg;
  static constexpr int kMaxRows = 4, kMaxSums = 4, kFloatRows = 2;
  static constexpr bool kSplits = false;
  template <bool ASigned>
  static void dot(Reg&, Part& part, Reg w, Reg a, int quad) {
    const Reg pairs = ASigned ? _mm256_maddubs_epi16(w, a) : _mm256_maddubs_epi16(a, w);
    part = quad ? _mm256_add_epi16(part, pairs) : pairs;
  }
  static void close(Reg& acc, Part& part) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
  }

  template <int Bits>
  static Float value(Reg x, int shift) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x, shift), _mm256_set1_epi32((1 << Bits) - 1)));
  }
  static Float sub_float(Float x, Float y) { return _mm256_sub_ps(x, y); }
  static Float add_float(Float x, Float y) { return _mm256_add_ps(x, y); }
  static Float splat_float(float x) { return _mm256_set1_ps(x); }
};

}  // namespace

QK_INT4_ROWS(Ymm, "4x16", QK_FLOAT_ROW(Ymm, "2x16", 4, "u4"), QK_FLOAT_ROW(Ymm, "2x16", 2, "u2"))

}  // namespace x86_avx2
}  // namespace qk
