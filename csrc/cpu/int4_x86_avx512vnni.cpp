// linear, weights of int4.h, x86_avx512vnni: u4 is the unsigned operand of vpdpbusd, or the signed one of u8 activations.
//
// Why 12×16: 12 sums of the group and 12 of the groups before it, a line and a plane of it, in 32 registers.
// Contract and drawing: int4_direct.h.
#define QK_ISA x86_avx512vnni
#include "int4_zmm.h"

namespace qk {
namespace x86_avx512vnni {
namespace {

constexpr double kGops = 500, kCallUs = 0.1, kGbS = 28;

struct Zmm : ZmmLanes {
  struct Part {};
  static constexpr int kMaxRows = 12, kMaxSums = 12;
  static constexpr bool kOneSigned = true, kSplits = true;  // vpdpbusd waits for itself 5 cycles
  template <bool ASigned, int Bits>
  static void dot(Reg& acc, Part&, Reg w, Reg a, int) {
    acc = ASigned ? _mm512_dpbusd_epi32(acc, w, a) : _mm512_dpbusd_epi32(acc, a, w);
  }
  template <int Bits>
  static void close(Reg&, Part&) {}
};

}  // namespace

QK_INT4_ROWS(Zmm, "12x16")

}  // namespace x86_avx512vnni
}  // namespace qk
