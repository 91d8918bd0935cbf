// acc[i, j] = Σ_k a[i, k]·w[j, k] by wgmma (sm_90a: Hopper, and nothing later).
//
// A persistent CTA of three warpgroups. One thread of the first is the producer: TMA brings kStep = 128 bytes of k of
// both operands into a ring of stages. The other two warpgroups multiply, 64 rows each, straight from shared memory.
//   `full[s]`   the stage's bytes have arrived: 1 arrival (the producer's) and kStageBytes of transactions
//   `empty[s]`  nobody reads the stage any more: an arrival of every consumer warp that reads what is written there
// The last multiplication stays under way while the next stage is waited for, so a stage is given back one step late.
//
//   128 × 256, clusters of 2: wgmma 64×256×32 reads 80 bytes of shared memory a clock of the 128 there are. Two CTAs
//     with different rows and the same columns load half of W's box each and multicast it: 32 bytes a clock from L2
//     instead of 48, of the 46 or so that L2 gives an SM.
//   128 × 128, alone: fewer than a wave of the large tile.
//   128 × 64 and 128 × 16, operands swapped: few rows of a against 128 weights; with parts of k.
//
// TMA writes zeros for what lies outside of the matrices, so no size needs a mask here. Contract: gemm.h.
// Source: PTX ISA 9.7.15 (wgmma, shared memory descriptors); the ring as in CUTLASS's warp-specialised kernels.
// Why an arrival a warp on `empty` and not one a warpgroup: the ISA has a warp wait for its own multiplications only.
// Why the epilogue through 32 KiB of its own: the ring is already being filled for the next tile.
#pragma once
#include "epilogue.h"
#include "launch.h"

namespace qk::cuda {

template <int kColumns_, int kStages_, int kCluster_, bool kSwapped_>
struct Tile90 {
  static constexpr int kRows = 128, kColumns = kColumns_, kStep = 128, kStages = kStages_, kCluster = kCluster_;
  static constexpr bool kSwapped = kSwapped_;
  static constexpr int kThreads = 384, kConsumerWarps = 8;
  static constexpr int kABytes = kRows * kStep, kStageBytes = kABytes + kColumns * kStep;
  static constexpr int kStaged = kColumns < 64 ? kColumns : 64;  // columns that a warp brings through its staging
  static constexpr int kStagingAt = kStages * kStageBytes;
  static constexpr int kBarriersAt = kStagingAt + kConsumerWarps * Staging<kStaged>::kBytes;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
  static_assert(kSharedBytes <= 227 << 10, "what an SM has");
};
using Pair90 = Tile90<256, 4, 2, false>;
using Single90 = Tile90<128, 5, 1, false>;
using Few90 = Tile90<64, 6, 1, true>;
using Least90 = Tile90<16, 8, 1, true>;

struct Args90 {
  TensorMap a, w;  // boxes of 128 rows of a, of kColumns / kCluster rows of w
  int m_tiles, n_tiles, splits;
  int64_t k;
  int batch;
  Epilogue epilogue;
};

// K-major, 128-byte swizzle: start address, 1024 bytes from 8 rows to the next 8; both in units of 16.
QK_DEVICE uint64_t descriptor(uint32_t address) {
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// What a cluster works on, in an order in which neighbours share operands in L2: bands of 8 clusters' rows.
struct Work90 {
  int row_tile, column_tile, split;
};

template <class Tile>
QK_DEVICE Work90 work_of(const Args90& args, int at) {
  constexpr int kBand = 8;
  const int down = (args.m_tiles + Tile::kCluster - 1) / Tile::kCluster, tiles = down * args.n_tiles;
  const int split = at / tiles, tile = at % tiles;
  const int band = tile / (kBand * args.n_tiles), first = band * kBand, rest = tile % (kBand * args.n_tiles);
  const int height = down - first < kBand ? down - first : kBand;
  return {(first + rest % height) * Tile::kCluster, rest / height, split};
}

struct Steps {
  int first, count;
};

template <class Tile>
QK_DEVICE Steps steps_of(const Args90& args, int split) {
  const int all = int((args.k + Tile::kStep - 1) / Tile::kStep), part = (all + args.splits - 1) / args.splits;
  const int first = split * part, last = first + part < all ? first + part : all;
  return {first, last > first ? last - first : 0};
}

struct Ring {  // where a thread is in the ring
  int stage = 0;
  uint32_t phase = 0;
  template <class Tile>
  QK_DEVICE void next() {
    if (++stage == Tile::kStages) stage = 0, phase ^= 1;
  }
};

template <class Tile>
QK_DEVICE void produce(const Args90& args, uint32_t shared, uint32_t full, uint32_t empty, int rank, int works) {
  constexpr int kShare = Tile::kColumns / Tile::kCluster;  // rows of W that this CTA loads, for all
  Ring ring;
  for (int at = ptx::block_x() / Tile::kCluster; at < works; at += ptx::grid_x() / Tile::kCluster) {
    const Work90 work = work_of<Tile>(args, at);
    const Steps steps = steps_of<Tile>(args, work.split);
    const int row = (work.row_tile + rank) * Tile::kRows, column = work.column_tile * Tile::kColumns;
    for (int i = 0; i < steps.count; ++i) {
      const uint32_t stage = shared + ring.stage * Tile::kStageBytes, bar = full + ring.stage * 8;
      const int k = (steps.first + i) * Tile::kStep;
      ptx::mbarrier_wait(empty + ring.stage * 8, ring.phase ^ 1);
      ptx::mbarrier_expect(bar, Tile::kStageBytes);
      ptx::tma_load(stage, &args.a, bar, k, row);
      const uint32_t w_stage = stage + Tile::kABytes + rank * kShare * Tile::kStep;
      if constexpr (Tile::kCluster == 1) ptx::tma_load(w_stage, &args.w, bar, k, column);
      else ptx::tma_load_multicast(w_stage, &args.w, bar, k, column + rank * kShare, (1 << Tile::kCluster) - 1);
      ring.next<Tile>();
    }
  }
}

// "I no longer read this stage", to everyone who writes into it.
template <class Tile>
QK_DEVICE void give_back(uint32_t empty, int stage) {
  const int lane = ptx::thread() & 31;
  if constexpr (Tile::kCluster == 1) {
    if (lane == 0) ptx::mbarrier_arrive(empty + stage * 8);
  } else if (lane < Tile::kCluster) {
    ptx::mbarrier_arrive_mapped(ptx::mapped(empty + stage * 8, lane));
  }
}

template <class Tile>
QK_DEVICE void store_sums(const Args90& args, uint32_t shared, int group, int64_t row, int64_t column,
                          const int32_t (&d)[Tile::kColumns / 2]) {
  const int warp = ptx::thread() / 32 % 4;
  const Staging<Tile::kStaged> staging{shared + Tile::kStagingAt + (group * 4 + warp) * Staging<Tile::kStaged>::kBytes};
  QK_UNROLL
  for (int c = 0; c < Tile::kColumns; c += Tile::kStaged) {
    QK_UNROLL
    for (int j = 0; j < Tile::kStaged; j += 8) staging.put(j, d + (c + j) / 2);
    store_tile<Tile::kStaged, Tile::kSwapped>(args.epilogue, args.batch, staging, row + group * 64 + warp * 16,
                                              column + c);
  }
}

template <class Tile, bool kASigned, bool kWSigned>
QK_DEVICE void consume(const Args90& args, uint32_t shared, uint32_t full, uint32_t empty, int rank, int works) {
  const int group = ptx::thread() / 128 - 1;
  Ring ring;
  int32_t d[Tile::kColumns / 2];
  for (int at = ptx::block_x() / Tile::kCluster; at < works; at += ptx::grid_x() / Tile::kCluster) {
    const Work90 work = work_of<Tile>(args, at);
    const Steps steps = steps_of<Tile>(args, work.split);
    if (steps.count == 0) continue;  // nothing to add to what other parts of k add up
    int last = -1;
    QK_NO_UNROLL
    for (int i = 0; i < steps.count; ++i) {
      const uint32_t stage = shared + ring.stage * Tile::kStageBytes;
      ptx::mbarrier_wait(full + ring.stage * 8, ring.phase);
      const uint64_t a = descriptor(stage + group * 64 * Tile::kStep), w = descriptor(stage + Tile::kABytes);
      ptx::wgmma_fence();
      QK_UNROLL
      for (int k = 0; k < Tile::kStep / 32; ++k)  // 32 bytes further inside the swizzled line: 2 units of 16
        ptx::wgmma<Tile::kColumns, kASigned, kWSigned>(d, a + k * 2, w + k * 2, i + k > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (last >= 0) give_back<Tile>(empty, last);
      last = ring.stage;
      ring.next<Tile>();
    }
    ptx::wgmma_wait<0>();
    give_back<Tile>(empty, last);  // and the last one
    store_sums<Tile>(args, shared, group, int64_t(work.row_tile + rank) * Tile::kRows,
                     int64_t(work.column_tile) * Tile::kColumns, d);
  }
}

template <class Tile, bool kASigned, bool kWSigned>
QK_KERNEL(Tile::kThreads, 1)
gemm_sm90a(QK_ARGUMENT Args90 args) {
  const uint32_t shared = ptx::shared_memory();
  const uint32_t full = shared + Tile::kBarriersAt, empty = full + Tile::kStages * 8;
  const int rank = Tile::kCluster > 1 ? ptx::cluster_rank() : 0;
  if (ptx::thread() == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::mbarrier_init(full + s * 8, 1);
      ptx::mbarrier_init(empty + s * 8, Tile::kConsumerWarps * Tile::kCluster);
    }
    ptx::mbarrier_fence_init();
  }
  if constexpr (Tile::kCluster > 1) ptx::cluster_sync();
  else ptx::cta_sync();

  const int works = (args.m_tiles + Tile::kCluster - 1) / Tile::kCluster * args.n_tiles * args.splits;
  if (ptx::thread() < 128) {
    ptx::give_registers<40>();
    if (ptx::thread() == 0) produce<Tile>(args, shared, full, empty, rank, works);
    ptx::warp_sync();  // a cluster barrier wants whole warps
  } else {
    ptx::take_registers<232>();
    consume<Tile, kASigned, kWSigned>(args, shared, full, empty, rank, works);
  }
  if constexpr (Tile::kCluster > 1) ptx::cluster_sync();  // the other CTA may still write here
}

template <class Tile>
void launch_sm90a(const Gemm& g, const Epilogue& e, Stream stream, const char* name) {
  for (int64_t batch = 0; batch < g.batches; ++batch) {
    Args90 args = {};
    args.a = matrix_map(g.a + batch * g.a_batch, g.m, g.k, g.a_pitch, Tile::kRows);
    args.w = matrix_map(g.w + batch * g.w_batch, g.n, g.k, g.w_pitch, Tile::kColumns / Tile::kCluster);
    args.m_tiles = int(ceil_to(g.m, Tile::kRows));
    args.n_tiles = int(ceil_to(g.n, Tile::kColumns));
    args.splits = g.splits;
    args.k = g.k;
    args.batch = int(batch);
    args.epilogue = e;
    const int64_t works = ceil_to(args.m_tiles, Tile::kCluster) * args.n_tiles * g.splits;
    const int64_t room = multiprocessors() / Tile::kCluster;
    Shape shape;
    shape.grid_x = int((works < room ? works : room) * Tile::kCluster);
    shape.threads = Tile::kThreads;
    shape.cluster = Tile::kCluster;
    shape.shared_bytes = Tile::kSharedBytes;
    if (g.a_signed)
      launch(g.w_signed ? gemm_sm90a<Tile, true, true> : gemm_sm90a<Tile, true, false>, shape, stream, args, name);
    else launch(g.w_signed ? gemm_sm90a<Tile, false, true> : gemm_sm90a<Tile, false, false>, shape, stream, args, name);
  }
}

}  // namespace qk::cuda
