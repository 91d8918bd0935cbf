// A mixture of experts: which rows of x a CTA has, and whose weight they meet, found where the offsets lie: on the device.
//
// Tiles of kRows rows are numbered so that nobody has to count them: with `place(e) = ⌊offsets[e] / kRows⌋ + e`, tile t is
// expert e's, the last one with place(e) ≤ t, and has the rows from offsets[e] + (t − place(e))·kRows on. There is room for
// all of them, since ⌈(b − a)/kRows⌉ ≤ ⌊b/kRows⌋ − ⌊a/kRows⌋ + 1, and place(experts) = ⌊m/kRows⌋ + experts tiles are launched,
// which the host knows without the offsets. At most one an expert finds nothing to do, and ends.
//
// Each warp counts the experts that begin no later than its tile, 32 at a time: one latency, no table, no second launch.
//
// Contract: offsets rise from 0 to m. Whatever they are, no row outside of x and out is touched.
// Why not a kernel that writes a list of tiles: a launch of its own, 2 µs, where a decoded layer takes 10.
#pragma once
#include "ptx.h"
#include "weights.h"

namespace qk::cuda {

struct RowRange {
  int64_t first, end;  // of a tile: from its first row to the end of all that meet the same weight
  int64_t expert;
};

// From one expert's codes to the next one's; and likewise in arrays of groups.
QK_DEVICE int64_t code_bytes(const Weights& w) { return (w.n + 63) / 64 * ((w.k + 63) / 64) * (512 * w.bits); }
QK_DEVICE int64_t places(const Weights& w) { return (w.n + 63) / 64 * w.groups * 64; }

QK_DEVICE uint32_t offset_of(const WeightProduct& p, int64_t expert) {
  const auto at = uint32_t(ptx::load(p.offsets + expert));
  return at < uint32_t(p.m) ? at : uint32_t(p.m);
}

template <int kRows>
QK_DEVICE RowRange rows_of(const WeightProduct& p, int tile) {
  if (!p.offsets) return {int64_t(tile) * kRows, p.m, 0};
  uint32_t begun = 0;
  QK_NO_UNROLL
  for (uint32_t e = ptx::thread() & 31; e < p.experts; e += 32) begun += offset_of(p, e) / kRows + e <= uint32_t(tile);
  QK_UNROLL
  for (int step = 1; step < 32; step *= 2) begun += ptx::shuffle(begun, (ptx::thread() & 31) ^ step);
  if (begun == 0) return {0, 0, 0};  // rows before the first expert's
  const int64_t expert = begun - 1, first = offset_of(p, expert);
  return {first + (tile - (first / kRows + expert)) * kRows, offset_of(p, expert + 1), expert};
}

// What follows the sums of these rows: the epilogue's arrays of columns lie one behind the other, as the weights do.
QK_DEVICE Epilogue epilogue_of(const WeightProduct& p, const RowRange& rows) {
  Epilogue e = p.epilogue;
  const int64_t columns = rows.expert * e.n;
  e.m = rows.end;
  if (e.float_bias) e.float_bias += columns;
  if (e.w_sums) e.w_sums += columns;
  if (e.w_scale) e.w_scale += columns * e.w_scale_step;
  return e;
}

// Tiles of so many rows that a grid has.
inline int row_tiles(const WeightProduct& p, int rows) {
  return int(p.offsets ? p.m / rows + p.experts : ceil_to(p.m, rows));
}

}  // namespace qk::cuda
