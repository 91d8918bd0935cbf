// Splits the lines of a pool's output once.
#include "pooling.h"

#include "environment.h"
#include "rows.h"
#include "threads.h"

namespace qk {
namespace {

const PoolList lists[] = {
#ifdef QK_HAVE_X86_AVX512BW
    x86_avx512bw::pool_list,
#endif
#ifdef QK_HAVE_X86_AVX2
    x86_avx2::pool_list,
#endif
    portable::pool_list,
};

struct Context {
  const PoolRow& row;
  const Pool& pool;
  idx lines, step;
};

void task(void* context, int index) {
  const Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;
  c.row.block(c.pool, {min_of(c.step * index, c.lines), min_of(c.step * (index + 1), c.lines)});
}

}  // namespace

int pool_count() {
  int count = 0;
  for (const PoolList& list : lists) count += list.count;
  return count;
}

const PoolRow& pool_row(int index) {
  const PoolList* list = lists;
  for (; index >= list->count; ++list) index -= list->count;
  return list->rows[index];
}

void run(const PoolRow& row, const Pool& pool, int threads, bool forced) {
  const idx lines = pool.images * pool.out_size[0];
  const double taps = double(lines) * double(pool.out_size[1] * pool.channels * pool.kernel[0] * pool.kernel[1]);
  const idx parts = max_of(min_of(idx(forced ? threads : threads_for(1e-3 * row.ns * taps, threads)), lines), 1);
  Context c = {row, pool, lines, ceil_div(lines, parts)};
  parallel(int(ceil_div(lines, c.step)), task, &c);
}

}  // namespace qk
