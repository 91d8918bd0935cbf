// The 64-byte registers of the byte dot product: vnni.h's V.
#pragma once
#include "bytes_zmm.h"

namespace qk {
namespace QK_ISA {
namespace {

struct Zmm : ZmmBytes {
  static Reg mul_add(Reg acc, Reg u, Reg s) { return _mm512_dpbusd_epi32(acc, u, s); }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
