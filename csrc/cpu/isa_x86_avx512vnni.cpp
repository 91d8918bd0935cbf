// gemm x86_avx512vnni: 64 byte products an instruction, Cascade Lake and later, Zen 4 and later.
//
// Why 12×32: 24 accumulators of 32 registers, 2 weight registers, 1 splat; 4×64, 6×64 and 14×32 measured the same rate,
// and 32 columns leave the least of a ragged N unused.
// Contract and source of the method: vnni.h.
#define QK_ISA x86_avx512vnni
#define QK_TILE "12x32"
#include "lanes_avx512.h"
#include "depthwise.h"
#include "interleave512.h"
#include "isa_rows.h"
#include "peak.h"
#include "vnni.h"
#include "x86.h"

namespace qk {
namespace x86_avx512vnni {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 650, kCallUs = 0.05;

struct Zmm {
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
  static Reg mul_add(Reg acc, Reg u, Reg s) { return _mm512_dpbusd_epi32(acc, u, s); }
  static Reg add(Reg x, Reg y) { return _mm512_add_epi32(x, y); }
  static void store(int32_t* p, Reg x) { _mm512_storeu_si512(p, x); }
};

template <bool ASigned, bool WSigned>
struct Isa : VnniIsa<Zmm, ASigned, WSigned, 12, 2, 24> {};

template <bool ASigned, bool WSigned>
struct QuadsIsa : VnniQuads<Zmm, Bytes512, ASigned, WSigned, 12> {};

double peak(idx rounds) { return peak_of<Zmm, 24, 128>(rounds, _mm512_set1_epi32(0x01020304)); }

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x16", 250)

}  // namespace x86_avx512vnni
}  // namespace qk
