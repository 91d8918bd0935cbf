// Convolutions of small groups on AVX512-VNNI (grouped.h), for the rows of x86_avx512vnni.
#define QK_ISA x86_avx512vnni_conv
#include "lanes_avx512.h"
#include "grouped.h"
#include "interleave512.h"
#include "rows.h"
#include "vnni_zmm.h"
#include "x86.h"

namespace qk {
namespace x86_avx512vnni_conv {
namespace {

// Four channels of its group in each of 16 lanes: quad `quad` of groups side by side, `filters` lanes each.
template <unsigned Flip>
struct Spread512 {
  __m512i order;
  __mmask64 bytes;

  Spread512(idx filters, idx quads, idx quad, idx valid) : bytes(~uint64_t(0) >> (64 - valid)) {
    int32_t lanes[16];
    for (idx l = 0; l < 16; ++l) lanes[l] = int32_t(l / filters * quads + quad);
    order = _mm512_loadu_si512(lanes);
  }
  QK_INLINE void operator()(const uint8_t* from, uint8_t* to) const {
    const __m512i x = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(bytes, from));
    _mm512_storeu_si512(to, Flip ? _mm512_xor_si512(x, _mm512_set1_epi32(int(Flip * 0x01010101u))) : x);
  }
};

template <bool ASigned, bool WSigned>
struct QuadsIsa : VnniQuads<Zmm, Bytes512, ASigned, WSigned, 12> {
  using Spread = Spread512<VnniQuads<Zmm, Bytes512, ASigned, WSigned, 12>::kFlip>;
};

}  // namespace

constexpr double kGops = 600;

#define QK_GROUPED_ROW(as, ws)               \
  {"x86_avx512vnni",                         \
   "x86_avx512vnni",                         \
   kGops,                                    \
   as,                                       \
   ws,                                       \
   Grouped<QuadsIsa<as, ws>>::takes,         \
   Grouped<QuadsIsa<as, ws>>::scratch_bytes, \
   Grouped<QuadsIsa<as, ws>>::block}

static const DirectRow rows_here[] = {QK_GROUPED_ROW(false, true), QK_GROUPED_ROW(true, true),
                                      QK_GROUPED_ROW(true, false), QK_GROUPED_ROW(false, false)};
const DirectList grouped = {rows_here, 4};

}  // namespace x86_avx512vnni_conv
}  // namespace qk
