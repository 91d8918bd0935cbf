// linear, weights of int4.h, x86_avxvnni: the byte dot product on 256 bits, u4 its unsigned operand, or the signed one
// of u8 activations.
//
// Why 4×16: a panel in two passes of 8 columns; 4 sums of the group, 4 of those before it, a line, a plane, the mask.
// Contract and drawing: int4_direct.h.
#define QK_ISA x86_avxvnni
#include "lanes_avx2.h"
#include "int4_ymm.h"

namespace qk {
namespace x86_avxvnni {
namespace {

constexpr double kGops = 250, kCallUs = 0.1, kGbS = 25;

struct Ymm : YmmLanes {
  struct Part {};
  static constexpr int kMaxRows = 4, kMaxSums = 4;
  static constexpr bool kOneSigned = true, kSplits = true;
  template <bool ASigned, int Bits>
  static void dot(Reg& acc, Part&, Reg w, Reg a, int) {
    acc = ASigned ? _mm256_dpbusd_avx_epi32(acc, w, a) : _mm256_dpbusd_avx_epi32(acc, a, w);
  }
  template <int Bits>
  static void close(Reg&, Part&) {}
};

}  // namespace

QK_INT4_ROWS(Ymm, "4x16")

}  // namespace x86_avxvnni
}  // namespace qk
