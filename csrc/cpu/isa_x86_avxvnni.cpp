// gemm x86_avxvnni: the byte dot product on 256 bits, for CPUs without AVX-512: Alder Lake and later.
//
// Why 6×16: 12 accumulators, 2 weight registers, 1 splat of 16 registers.
// Contract and source of the method: vnni.h.
#define QK_ISA x86_avxvnni
#define QK_TILE "6x16"
#include "bytes_ymm.h"
#include "lanes_avx2.h"
#include "depthwise.h"
#include "interleave256.h"
#include "isa_rows.h"
#include "peak.h"
#include "vnni.h"
#include "x86.h"

namespace qk {
namespace x86_avxvnni {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 380, kCallUs = 0.05;

struct Ymm : YmmBytes {
  static Reg mul_add(Reg acc, Reg u, Reg s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
};

template <bool ASigned, bool WSigned>
struct Isa : VnniIsa<Ymm, ASigned, WSigned, 6, 1, 12> {};

template <bool ASigned, bool WSigned>
struct QuadsIsa : VnniQuads<Ymm, Bytes256, ASigned, WSigned, 8> {};

double peak(idx rounds) { return peak_of<Ymm, 12, 64>(rounds, _mm256_set1_epi32(0x01020304)); }

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x8", 85)

}  // namespace x86_avxvnni
}  // namespace qk
