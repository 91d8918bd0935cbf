// From one elementwise call to parts on threads.
#pragma once
#include "../elementwise.h"

namespace qk {

int elementwise_count();
const ElementwiseRow& elementwise_row(int index);  // every elementwise kernel of this build

// At most `threads` threads, fewer where the work is not worth waking them; exactly so many when `forced`.
void run(const ElementwiseRow& row, Elementwise job, int threads, bool forced);

}  // namespace qk
