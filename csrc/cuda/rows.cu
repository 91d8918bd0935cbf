// Which products there are, and how one is carried out: swapped operands, parts of k, the epilogue after them.
#include "rows.h"

#include <utility>

#include "launch.h"

namespace qk::cuda {
namespace {

const Row kRows[] = {
    {"128x256", "cuda_sm90a", 128, 256, false, 128, 1, 90, 90, pair_sm90a},
    {"128x128", "cuda_sm90a", 128, 128, false, 128, 1, 90, 90, single_sm90a},
    {"64x128", "cuda_sm90a", 64, 128, true, 128, 1, 90, 90, few_sm90a},
    {"16x128", "cuda_sm90a", 16, 128, true, 128, 1, 90, 90, least_sm90a},
    {"128x128", "cuda_sm80", 128, 128, false, 64, 2, 80, 999, large_sm80},
    {"16x128", "cuda_sm80", 16, 128, true, 128, 2, 80, 999, small_sm80},
    {"128x128", "cuda_sm75", 128, 128, false, 64, 1, 75, 79, large_sm75},
    {"64x64", "cuda_dp4a", 64, 64, false, 32, 2, 75, 999, any_dp4a},
};

bool sums_as_they_are(const Epilogue& e) {
  return e.output == kS32 && !e.a_zero && !e.w_zero && !e.bias && e.out_row == e.n && e.out_batch == e.m * e.n;
}

}  // namespace

RowList all_rows() { return {kRows, int(sizeof kRows / sizeof kRows[0])}; }

int splits_of(const Row& row, const Gemm& g) {
  const int64_t tiles = ceil_to(g.m, row.rows) * ceil_to(g.n, row.columns) * g.batches;
  const int64_t room = int64_t(multiprocessors()) * row.ctas_an_sm / tiles;
  const int64_t longest = g.k / (4 * row.step);
  const int64_t splits = room < longest ? room : longest;
  return int(splits < 1 ? 1 : splits > 64 ? 64 : splits);
}

int64_t workspace_bytes(const Row& row, const Gemm& g, const Epilogue& e) {
  return splits_of(row, g) > 1 && !sums_as_they_are(e) ? g.batches * g.m * g.n * 4 : 0;
}

void run_gemm(const Row& row, Gemm g, Epilogue e, void* workspace, Stream stream) {
  g.splits = splits_of(row, g);
  const int64_t batches = g.batches, elements = g.m * g.n;
  Epilogue last = e;
  if (g.splits > 1) {
    if (!sums_as_they_are(e)) e.out = workspace;
    e.output = kPartial;
    e.out_row = e.n;
    e.out_batch = elements;
    clear(e.out, size_t(batches * elements) * 4, stream);
  }
  if (row.swapped) {
    std::swap(g.m, g.n);
    std::swap(g.a, g.w);
    std::swap(g.a_pitch, g.w_pitch);
    std::swap(g.a_batch, g.w_batch);
    std::swap(g.a_signed, g.w_signed);
  }
  row.run(g, e, stream);
  if (g.splits > 1 && !sums_as_they_are(last)) finish_parts(static_cast<const int32_t*>(e.out), batches, last, stream);
}

}  // namespace qk::cuda
