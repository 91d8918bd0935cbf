// The 64-byte registers of products of bytes: vnni.h's V, but for the product itself.
#pragma once
#include <string.h>

#include "../kernel.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct ZmmBytes {
  using Reg = __m512i;
  static constexpr int kLanes = 16;
  static Reg zero() { return _mm512_setzero_si512(); }
  static Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Reg load_sums(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Reg splat(const uint8_t* four) {
    int x;
    memcpy(&x, four, 4);
    return _mm512_set1_epi32(x);
  }
  static Reg add(Reg x, Reg y) { return _mm512_add_epi32(x, y); }
  static void store(int32_t* p, Reg x) { _mm512_storeu_si512(p, x); }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
