// The list of all kernels of int4.h's weights, and their way onto threads: columns are split first, so that each
// thread streams its own panels; K is never split, so that results do not depend on the number of threads.
#include "int4.h"

#include <string.h>

#include <atomic>

#include "../epilogue.h"
#include "environment.h"
#include "linear.h"
#include "rows.h"
#include "threads.h"

namespace qk {
namespace {

struct Context {
  const Int4Row& row;
  const Int4& g;
  int in_m, in_n;
  std::atomic<bool> failed{false};
};

Range part(idx size, idx tile, int parts, int index) {
  const idx tiles = ceil_div(size, tile);
  return {min_of(tiles * index / parts * tile, size), min_of(tiles * (index + 1) / parts * tile, size)};
}

void block_task(void* context, int index) {
  Context& c = *static_cast<Context*>(context);
  const FloatEnvironment exact;
  const Range m = part(c.g.m, c.row.mr, c.in_m, index / c.in_n), n = part(c.g.n, c.row.nr, c.in_n, index % c.in_n);
  if (m.begin == m.end || n.begin == n.end) return;
  if (void* scratch = thread_scratch(kBlockScratch, c.row.scratch_bytes(c.g))) c.row.block(c.g, m, n, scratch);
  else c.failed = true;
}

bool multiply(const Int4Row& row, const Int4& g, int threads, bool forced) {
  if (!forced) threads = threads_for(int4_us(row, g.m, g.n, g.k), threads);
  const int in_n = int(min_of(threads, ceil_div(g.n, row.nr)));
  Context c{row, g, int(min_of(threads / in_n, ceil_div(g.m, row.mr))), in_n, {false}};
  parallel(c.in_m * c.in_n, block_task, &c);
  return !c.failed;
}

struct Product {
  const Int4Row& row;
  Int4 g;
  int threads;
  bool forced;
};

bool multiply_rows(void* context, const uint8_t* codes, idx rows, const Epilogue& e) {
  Product& p = *static_cast<Product*>(context);
  p.g.m = rows, p.g.epilogue = &e;
  p.g.a = codes, p.g.a_row = p.g.k, p.g.a_col = 1;
  return multiply(p.row, p.g, p.threads, p.forced);
}

}  // namespace

double int4_us(const Int4Row& row, idx m, idx n, idx k) {
  const double weights = double(padded(n, kPanel)) * double(padded(k, kPackedK));
  return row.call_us + 1e-3 * weights * row.bits / 8 / row.gb_s + 2e-3 * double(m) * weights / row.gops;
}

Int4List all_int4_rows() {
  static const Int4List lists[] = {
#ifdef QK_HAVE_X86_AMXBF16
      x86_amxbf16::int4_list,
#endif
#ifdef QK_HAVE_X86_AMX
      x86_amx::int4_list,
#endif
#ifdef QK_HAVE_X86_AVX512VNNI
      x86_avx512vnni::int4_list,
#endif
#ifdef QK_HAVE_X86_AVXVNNI
      x86_avxvnni::int4_list,
#endif
#ifdef QK_HAVE_X86_AVX512BW
      x86_avx512bw::int4_list,
#endif
#ifdef QK_HAVE_X86_AVX2
      x86_avx2::int4_list,
#endif
      portable::int4_list,
  };
  constexpr int kLists = sizeof lists / sizeof lists[0];
  struct Joined {
    Int4Row rows[kLists * 16];
    int count = 0;
    Joined() {
      for (const Int4List& list : lists)
        for (int i = 0; i < list.count; ++i) memcpy(&rows[count++], &list.rows[i], sizeof(Int4Row));
    }
  };
  static const Joined joined;
  return {joined.rows, joined.count};
}

bool run_int4(const Int4Row& row, const Int4& g, const Epilogue& e, const float* x, int threads, bool forced) {
  static const float one = 1;
  Epilogue whole = e;
  Product p{row, g, threads, forced};
  p.g.epilogue = &whole, p.g.x = x;
  if (row.of_floats) whole.a_scale = &one, whole.a_scale_step = 0;
  const bool good = x && !row.of_floats ? in_quantized_rows(x, g.m, g.k, e, threads, forced, multiply_rows, &p)
                                        : multiply(row, p.g, threads, forced);
  trim_thread_scratch();
  return good;
}

}  // namespace qk
