// Operands as the products read them: k adjacent, pitches multiples of 16 bytes, zeros behind k; and the sums of rows.
//
// A weight matrix (k, n) as NumPy has it lies the other way round: a thread reads 4 × 4 bytes as four words along n,
// transposes them in registers, and rows of 64 k leave through shared memory, 16 bytes a thread.
#pragma once
#include "calls.h"
#include "launch.h"

namespace qk::cuda {

constexpr int kRearrangeTile = 64;

QK_DEVICE uint32_t rearranged_word(const RearrangeArgs& args, const uint8_t* from, int64_t row, int64_t k) {
  uint32_t word = 0;
  QK_UNROLL
  for (int b = 0; b < 4; ++b)
    if (row < args.rows && k + b < args.k)
      word |= uint32_t(ptx::load(from + row * args.row_step + (k + b) * args.k_step)) << 8 * b;
  return word;
}

// 64 rows × 64 k of shared memory, two rows a line of 32 banks, its 8 chunks of 16 bytes in another order in each four
// rows: neither the words of a transposition, which go to every fourth row, nor the chunks on their way out meet in a bank.
QK_DEVICE uint32_t tile_at(int row, int k) {
  const int chunk = (row & 1) * 4 + k / 16;
  return (row >> 1) * 128 + (chunk ^ (row >> 2 & 7)) * 16 + k % 16;
}

QK_DEVICE uint32_t byte_of(uint32_t word, int b) { return word >> 8 * b & 0xFF; }

QK_KERNEL(256, 4) rearrange(QK_ARGUMENT RearrangeArgs args) {
  const uint32_t shared = ptx::shared_memory();
  const int64_t first_row = int64_t(ptx::block_x()) * kRearrangeTile,
                first_k = int64_t(ptx::block_y()) * kRearrangeTile;
  const uint8_t* from = args.from + ptx::block_z() * args.batch_step;
  const int t = ptx::thread();
  const bool words =
      (args.row_step == 1 ? args.k_step : args.row_step) % 4 == 0 && (reinterpret_cast<uintptr_t>(from) & 3) == 0;
  if (args.row_step == 1) {  // neighbours are neighbouring rows: 4 rows × 4 k a thread
    const int row = t % 8 * 4 + t / 32 % 2 * 32, k = t / 8 % 4 * 4 + t / 64 * 16;
    uint32_t x[4];
    if (words && first_row + row + 4 <= args.rows && first_k + k + 4 <= args.k) {
      QK_UNROLL
      for (int i = 0; i < 4; ++i)
        x[i] = ptx::load(reinterpret_cast<const uint32_t*>(from + first_row + row + (first_k + k + i) * args.k_step));
      QK_UNROLL
      for (int r = 0; r < 4; ++r)
        ptx::store_shared(shared + tile_at(row + r, k),
                          byte_of(x[0], r) | byte_of(x[1], r) << 8 | byte_of(x[2], r) << 16 | byte_of(x[3], r) << 24);
    } else {
      QK_UNROLL
      for (int r = 0; r < 4; ++r)
        ptx::store_shared(shared + tile_at(row + r, k), rearranged_word(args, from, first_row + row + r, first_k + k));
    }
  } else {
    QK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = t / 16 + i * 16, k = t % 16 * 4;
      const bool whole = words && args.k_step == 1 && first_row + row < args.rows && first_k + k + 4 <= args.k;
      const uint32_t word =
          whole ? ptx::load(reinterpret_cast<const uint32_t*>(from + (first_row + row) * args.row_step + first_k + k))
                : rearranged_word(args, from, first_row + row, first_k + k);
      ptx::store_shared(shared + tile_at(row, k), word);
    }
  }
  ptx::cta_sync();
  const int row = t / 4, k = t % 4 * 16;
  if (first_row + row < args.rows && first_k + k < args.pitch)
    ptx::store(
        reinterpret_cast<Words4*>(args.to + (ptx::block_z() * args.rows + first_row + row) * args.pitch + first_k + k),
        ptx::load_shared<Words4>(shared + tile_at(row, k)));
}

inline void launch_rearrange(const RearrangeArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(args.rows, kRearrangeTile));
  shape.grid_y = int(ceil_to(args.pitch, kRearrangeTile));
  shape.grid_z = int(args.batches);
  shape.threads = 256;
  shape.shared_bytes = kRearrangeTile * kRearrangeTile;
  launch(rearrange, shape, stream, args, "rearrange");
}

// ---------------------------------------------------------------- sums of rows
template <bool kSigned>
QK_DEVICE int32_t row_sum(const SumsArgs& args, int64_t row, int lane) {
  const uint8_t* from = args.from + row * args.pitch;
  int32_t sum = 0;
  for (int64_t k = lane * 16; k < args.k; k += 512) {
    if (k + 16 <= args.k) {
      const Words4 words = ptx::load(reinterpret_cast<const Words4*>(from + k));
      QK_UNROLL
      for (int i = 0; i < 4; ++i) sum = ptx::dp4a<kSigned, true>(words.x[i], 0x01010101u, sum);
    } else {
      for (int64_t at = k; at < args.k; ++at) {
        const uint8_t byte = ptx::load(from + at);
        sum += kSigned ? int32_t(int8_t(byte)) : int32_t(byte);
      }
    }
  }
  return sum;
}

QK_KERNEL(256, 4) sum_rows(QK_ARGUMENT SumsArgs args) {
  const int lane = ptx::thread() & 31;
  const int64_t row = int64_t(ptx::block_x()) * 8 + ptx::thread() / 32;  // a warp each
  if (row >= args.rows) return;
  uint32_t sum = args.is_signed ? row_sum<true>(args, row, lane) : row_sum<false>(args, row, lane);
  for (int step = 16; step > 0; step /= 2) sum += ptx::shuffle(sum, lane ^ step);
  if (lane == 0) ptx::store(args.sums + row, int32_t(sum));
}

inline void launch_sums(const SumsArgs& args, Stream stream) {
  Shape shape;
  shape.grid_x = int(ceil_to(args.rows, 8));
  shape.threads = 256;
  launch(sum_rows, shape, stream, args, "sum_rows");
}

}  // namespace qk::cuda
