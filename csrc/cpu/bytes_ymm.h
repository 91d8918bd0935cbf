// The 32-byte registers of products of bytes: vnni.h's V, but for the product itself.
#pragma once
#include <string.h>

#include "../kernel.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

struct YmmBytes {
  using Reg = __m256i;
  static constexpr int kLanes = 8;
  static Reg zero() { return _mm256_setzero_si256(); }
  static Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Reg load_sums(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Reg splat(const uint8_t* four) {
    int x;
    memcpy(&x, four, 4);
    return _mm256_set1_epi32(x);
  }
  static Reg add(Reg x, Reg y) { return _mm256_add_epi32(x, y); }
  static void store(int32_t* p, Reg x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
