// gemm x86_avx2: exact 8-bit products without VNNI, for Haswell to Zen 3.
//
// Why 6×16 in two passes of 6×8: 12 accumulators, 2 weight registers and 1 splat fill 15 of 16 registers. A step of
// 4 k costs 12 vpmaddwd + 12 vpaddd + 2 vpmovsxbw + 6 broadcasts for 384 operations. With three rows or fewer all
// 16 columns go in one pass.
// Contract and source of the method: widen.h.
#define QK_ISA x86_avx2
#define QK_TILE "6x16"
#define QK_DRIVER(as, ws) NarrowDriver<Isa<as, ws>, NarrowIsa<as, ws>, as>
#include "bytes_ymm.h"
#include "lanes_avx2.h"
#include "depthwise.h"
#include "interleave256.h"
#include "isa_rows.h"
#include "narrow.h"
#include "peak.h"
#include "widen.h"
#include "x86.h"

namespace qk {
namespace x86_avx2 {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 120, kCallUs = 0.05;

struct Ymm {
  using Reg = __m256i;
  static constexpr int kCols = 4;
  static Reg zero() { return _mm256_setzero_si256(); }
  template <bool Signed>
  static Reg widen(const uint8_t* bytes) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return Signed ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x);
  }
  static Reg splat(const int16_t* four) {
    long long x;
    memcpy(&x, four, 8);
    return _mm256_set1_epi64x(x);
  }
  // In this order: gcc 12 forms many products before the first sum, and spills (85 GOPS for 130).
  static Reg mul_add(Reg acc, Reg x, Reg y) {
    Reg product = _mm256_madd_epi16(x, y);
    QK_KEEP(product);
    acc = _mm256_add_epi32(acc, product);
    QK_KEEP(acc);
    return acc;
  }
  static void join(Reg x, Reg y, int32_t* out) {
    const Reg sums = _mm256_hadd_epi32(x, y);  // n01 n45 | n23 n67
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(sums, 0xD8));
  }
};

template <bool ASigned, bool WSigned>
struct Isa : WidenIsa<Ymm, ASigned, WSigned, 6, 8> {};

struct NarrowYmm : YmmBytes {
  static Reg mul_add(Reg acc, Reg u, Reg s) {
    Reg product = _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
    QK_KEEP(product);
    acc = _mm256_add_epi32(acc, product);
    QK_KEEP(acc);
    return acc;
  }
};

template <bool ASigned, bool WSigned>
struct NarrowIsa : VnniIsa<NarrowYmm, ASigned, WSigned, 4, 1, 8> {};

template <bool ASigned, bool WSigned>
struct QuadsIsa : WidenQuads<Ymm, Bytes256, ASigned, WSigned, 4> {};

double peak(idx rounds) { return peak_of<Ymm, 12, 32>(rounds, _mm256_set1_epi32(0x01020304)); }

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x8", 45)

}  // namespace x86_avx2
}  // namespace qk
