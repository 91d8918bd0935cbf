// From one pool to parts on threads.
#pragma once
#include "../pool.h"

namespace qk {

int pool_count();
const PoolRow& pool_row(int index);  // every pool of this build

// threads and forced as of elements.h.
void run(const PoolRow& row, const Pool& pool, int threads, bool forced);

}  // namespace qk
