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
#include "vnni_zmm.h"
#include "x86.h"

namespace qk {
namespace x86_avx512vnni {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 650, kCallUs = 0.05;

template <bool ASigned, bool WSigned>
struct Isa : VnniIsa<Zmm, ASigned, WSigned, 12, 2, 24> {};

template <bool ASigned, bool WSigned>
struct QuadsIsa : VnniQuads<Zmm, Bytes512, ASigned, WSigned, 12> {};

double peak(idx rounds) { return peak_of<Zmm, 24, 128>(rounds, _mm512_set1_epi32(0x01020304)); }

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x16", 110)

}  // namespace x86_avx512vnni
}  // namespace qk
