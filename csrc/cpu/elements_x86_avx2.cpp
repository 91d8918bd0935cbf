// The elementwise ops and the pools for AVX2 and FMA.
#define QK_ISA x86_avx2
#define QK_LOOKUP lookup_block
#include "lanes_avx2.h"
#include "elementwise.h"
#include "rows.h"

namespace qk {
namespace x86_avx2 {
namespace { constexpr double kLookupNs = 0.25, kElementNs = 0.12; }  // namespace

QK_ELEMENTWISE_ROWS
QK_POOL_ROWS

}  // namespace x86_avx2
}  // namespace qk
