// The elementwise ops and the pools for AVX-512 F, BW, VL and DQ.
#define QK_ISA x86_avx512bw
#define QK_LOOKUP lookup512_block
#include "lanes_avx512.h"
#include "elementwise.h"
#include "lookup512.h"
#include "rows.h"

namespace qk {
namespace x86_avx512bw {
namespace { constexpr double kLookupNs = 0.1, kElementNs = 0.08; }  // namespace

QK_ELEMENTWISE_ROWS
QK_POOL_ROWS

}  // namespace x86_avx512bw
}  // namespace qk
