// The elementwise ops and the pools for any CPU, compiled for the baseline of the platform and nothing more.
#define QK_ISA portable
#define QK_LOOKUP lookup_block
#include "lanes_portable.h"
#include "elementwise.h"
#include "rows.h"

namespace qk {
namespace portable {
namespace { constexpr double kLookupNs = 0.25, kElementNs = 0.6; }  // namespace

QK_ELEMENTWISE_ROWS
QK_POOL_ROWS

}  // namespace portable
}  // namespace qk
