// Which products with packed weights there are, and how one is carried out: parts of k, and their sum.
#include "weight_rows.h"

#include "launch.h"

namespace qk::cuda {
namespace {

const WeightRow kWeightRows[] = {
    {"8x128", "cuda_sm80", "halves", 8, 128, 4, 80, 999, halves_8},
    {"16x128", "cuda_sm80", "halves", 16, 128, 4, 80, 999, halves_16},
    {"32x128", "cuda_sm80", "halves", 32, 128, 2, 80, 999, halves_32},
    {"64x256", "cuda_sm80", "halves", 64, 256, 1, 80, 999, halves_64},
    {"16x128", "cuda_sm80", "codes", 16, 128, 0, 80, 999, codes_16},
    {"32x256", "cuda_sm80", "codes", 32, 256, 0, 80, 999, codes_32},
    {"128x128", "cuda_sm80", "codes", 128, 128, 0, 80, 999, codes_128},
    {"4x16", "cuda_dp4a", "floats", 4, 16, 0, 75, 999, any_floats},
};

// As many parts of k as fill the GPU once, none shorter than four stages.
int weight_splits(const WeightRow& row, const WeightProduct& p) {
  if (row.deep == 0 || p.offsets) return 1;  // of experts there are enough tiles
  const int64_t tiles = ceil_to(p.m, row.rows) * ceil_to(p.w.n, row.columns);
  const int64_t room = 2 * int64_t(multiprocessors()) / tiles, longest = p.w.chunks() / (4 * row.deep);
  const int64_t splits = room < longest ? room : longest;
  return int(splits < 1 ? 1 : splits > 32 ? 32 : splits);
}

}  // namespace

WeightRowList weight_rows() { return {kWeightRows, int(sizeof kWeightRows / sizeof kWeightRows[0])}; }

int64_t weight_workspace(const WeightRow& row, const WeightProduct& p) {
  const int splits = weight_splits(row, p);
  return splits > 1 ? splits * p.m * p.w.n * 4 : 0;
}

void run_weights(const WeightRow& row, WeightProduct p, void* workspace, Stream stream) {
  p.splits = weight_splits(row, p);
  p.parts = static_cast<float*>(workspace);
  row.run(p, stream);
  if (p.splits > 1) add_float_parts(p, stream);
}

}  // namespace qk::cuda
