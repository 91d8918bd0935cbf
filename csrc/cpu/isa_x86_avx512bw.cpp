// gemm x86_avx512bw: exact 8-bit products on Skylake-X class CPUs, which have 512-bit pmaddwd and no VNNI.
//
// Why 12×16: 24 accumulators, 2 weight registers, 1 splat of 32 registers; a step of 4 k is 24 vpmaddwd + 24 vpaddd +
// 2 vpmovsxbw + 12 broadcasts for 1 536 operations.
// Contract and source of the method: widen.h.
#define QK_ISA x86_avx512bw
#define QK_TILE "12x16"
#define QK_DRIVER(as, ws) NarrowDriver<Isa<as, ws>, NarrowIsa<as, ws>, as>
#include "bytes_zmm.h"
#include "lanes_avx512.h"
#include "depthwise.h"
#include "interleave512.h"
#include "isa_rows.h"
#include "narrow.h"
#include "peak.h"
#include "widen.h"
#include "x86.h"

namespace qk {
namespace x86_avx512bw {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 220, kCallUs = 0.05;

struct Zmm {
  using Reg = __m512i;
  static constexpr int kCols = 8;
  static Reg zero() { return _mm512_setzero_si512(); }
  template <bool Signed>
  static Reg widen(const uint8_t* bytes) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    return Signed ? _mm512_cvtepi8_epi16(x) : _mm512_cvtepu8_epi16(x);
  }
  static Reg splat(const int16_t* four) {
    long long x;
    memcpy(&x, four, 8);
    return _mm512_set1_epi64(x);
  }
  // In this order: gcc 12 forms many products before the first sum, and spills (85 GOPS for 130).
  static Reg mul_add(Reg acc, Reg x, Reg y) {
    Reg product = _mm512_madd_epi16(x, y);
    QK_KEEP(product);
    acc = _mm512_add_epi32(acc, product);
    QK_KEEP(acc);
    return acc;
  }
  static void join(Reg x, Reg y, int32_t* out) {
    const Reg even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Reg odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    _mm512_storeu_si512(out,
                        _mm512_add_epi32(_mm512_permutex2var_epi32(x, even, y), _mm512_permutex2var_epi32(x, odd, y)));
  }
};

template <bool ASigned, bool WSigned>
struct Isa : WidenIsa<Zmm, ASigned, WSigned, 12, 24> {};

struct NarrowZmm : ZmmBytes {
  static Reg mul_add(Reg acc, Reg u, Reg s) {
    Reg product = _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1));
    QK_KEEP(product);
    acc = _mm512_add_epi32(acc, product);
    QK_KEEP(acc);
    return acc;
  }
};

template <bool ASigned, bool WSigned>
struct NarrowIsa : VnniIsa<NarrowZmm, ASigned, WSigned, 8, 1, 8> {};

template <bool ASigned, bool WSigned>
struct QuadsIsa : WidenQuads<Zmm, Bytes512, ASigned, WSigned, 8> {};

double peak(idx rounds) { return peak_of<Zmm, 24, 64>(rounds, _mm512_set1_epi32(0x01020304)); }

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x16", 70)

}  // namespace x86_avx512bw
}  // namespace qk
