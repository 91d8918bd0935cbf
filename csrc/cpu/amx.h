// The AMX pipeline: tiles of 16 rows × 64 bytes, multiplied 16×64 by 64×16 in one instruction, Sapphire Rapids and later.
//
//   t0 t1 │ A rows 0…upper−1: C0 C1      t4 A upper   t6 weights panel p
//   t2 t3 │ A rows upper…:    C2 C3      t5 A lower   t7 weights panel p + 1
//
// Why 2×2 tiles: each loaded tile is used twice, so that loads (8 cycles from L1) stay under multiplications (16).
// Why both A and both weights are loaded before the four multiplications: with loads between them, weights streamed
// from L2 cost 21.5 ns a k step; so, 19.7 ns, which is what the same step takes from L1.
// Why the sums of a tile leave in the *next* tile's first k step, register by register, each before its register is
// used again: stores right behind a multiplication wait for it with the scheduler full, and the next loads queue
// behind them: 50 ns a tile, 24 % at K = 512. Here they cost 10 ns.
// Why sums go through a buffer of L1 and are then taken out in the later k steps ("drain"): whatever becomes of them,
// copying included, hides under multiplications. Storing tiles into the output directly was slower where the output is
// not in L1 (28.0 against 25.8 ns a k step at 512³, 38.6 against 34.4 with the output off the line by 16 bytes).
// The tile configuration is loaded on entry and released on exit: another library's release would fault us.
// Source: Intel Architecture Instruction Set Extensions, chapter 3 (tile architecture).
#pragma once
#include "driver.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kTileRows = 16, kTileK = 64;
constexpr idx kPair = 2 * kPanel;         // columns of a tile of results: two panels
constexpr idx kSumsRow = kPanel + kPair;  // of the buffer: room for what the row before left over (drain.h), then sums
constexpr idx kSumsSize = 2 * kTileRows * kSumsRow;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline idx upper_rows(idx rows) { return rows > kTileRows ? (rows + 1) / 2 : rows; }

inline void configure(idx rows_above, idx rows_below, idx tile_k) {
  TileConfig config;
  const uint8_t upper = uint8_t(rows_above), lower = uint8_t(rows_below), deep = uint8_t(tile_k / kGroup);
  const uint8_t of_tile[8] = {upper, upper, lower, lower, upper, lower, deep, deep};
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = t == 4 || t == 5 ? uint16_t(tile_k) : 64;
    config.rows[t] = of_tile[t];
  }
  qk_tile_loadconfig(&config);
}

inline void configure(idx rows, idx tile_k = kTileK) {
  configure(upper_rows(rows), max_of(rows - upper_rows(rows), 1), tile_k);
}

// Adjacent memory that will be wanted: a few lines of it are fetched into L2 in each k step.
struct Ahead {
  const uint8_t* next = nullptr;
  idx left = 0, a_step = 0;  // lines

  void over(const uint8_t* data, idx bytes, idx steps) {
    next = data, left = ceil_div(bytes, 64), a_step = ceil_div(left, max_of(steps, 1));
  }
};

#ifndef QK_TDP  // bytes; else whatever else fills a tile
#define QK_TDP(c, a, w)                                      \
  do {                                                       \
    if constexpr (ASigned && WSigned) _tile_dpbssd(c, a, w); \
    else if constexpr (ASigned) _tile_dpbsud(c, a, w);       \
    else if constexpr (WSigned) _tile_dpbusd(c, a, w);       \
    else _tile_dpbuud(c, a, w);                              \
  } while (0)
#endif

#define QK_LOAD()                                              \
  do {                                                         \
    _tile_loadd(4, a, a_stride);                               \
    if constexpr (Lower) _tile_loadd(5, b, a_stride);          \
    _tile_stream_loadd(6, w, 64);                              \
    if constexpr (Two) _tile_stream_loadd(7, w + w_panel, 64); \
  } while (0)

// Register c changes hands: the tile before leaves, this one begins.
#define QK_TURN(c, offset)                                    \
  do {                                                        \
    if (held) _tile_stored(c, held + (offset), kSumsRow * 4); \
    if (!fresh) {                                             \
      if (add) _tile_loadd(c, sums + (offset), kSumsRow * 4); \
      else _tile_zero(c);                                     \
    }                                                         \
  } while (0)

// Tiles one after the other through the registers.
//
// `Drain` takes finished sums, described by a Drain::Job:
//   bool quick(const Job&)                            may its rows go through a Cursor? Registers only, inlined
//   Cursor cursor(const Job&, int32_t* sums)          with  void rows(n)  for n rows after the other, best in pairs
//   void rows(const Job&, int32_t* sums, idx r, idx end)     otherwise
// A tile's job is written into job() before its last multiply(); its rows are drained during the next calls, so what it
// refers to must live until flush().
// Why jobs are written in place and never copied, and the quick way lives in registers: loads between tile stores are
// dear. A copied struct, read wide after it was written narrow, waits for every store before it (130 ns a tile); even
// parameters that merely live in memory cost 5 ns a k step.
template <bool ASigned, bool WSigned, class Drain>
class AmxPipe {
 public:
  using Job = typename Drain::Job;
  explicit AmxPipe(Drain& drain) : drain_(drain) {}

  // Rows (1…32) and panels (1 or 2) of the tiles that follow.
  void shape(idx rows, int panels) {
    if (rows == rows_ && panels == panels_) return;
    flush();
    if (rows != rows_) configure(rows);
    rows_ = rows, panels_ = panels;
  }

  Job& job() { return jobs_[next_job_]; }

  // sums[rows][kSumsRow] (+)= A × weights over `steps` times 64 k. A in rows of a_stride bytes, a step further a_step;
  // a panel of weights contiguous. With `last`, the sums are whole, and drained by job(). Where there are `runs`, so many
  // steps of each of them.
  void multiply(const uint8_t* a, idx a_step, idx a_stride, const uint8_t* w, idx w_panel, idx steps, int32_t* sums,
                bool add, bool last) {
    const bool lower = rows_ > kTileRows, two = panels_ == 2;
    if (lower && two) run<true, true>(a, a_step, a_stride, w, w_panel, steps, sums, add);
    else if (lower) run<true, false>(a, a_step, a_stride, w, w_panel, steps, sums, add);
    else if (two) run<false, true>(a, a_step, a_stride, w, w_panel, steps, sums, add);
    else run<false, false>(a, a_step, a_stride, w, w_panel, steps, sums, add);
    held_ = sums;
    held_last_ = last;
    if (last) held_job_ = &job(), next_job_ = (next_job_ + 1) % kJobs;
  }

  void flush() {
    if (!held_) return;
    const idx below = upper_rows(rows_) * kSumsRow;
    _tile_stored(0, held_, kSumsRow * 4);
    if (panels_ == 2) _tile_stored(1, held_ + kPanel, kSumsRow * 4);
    if (rows_ > kTileRows) _tile_stored(2, held_ + below, kSumsRow * 4);
    if (rows_ > kTileRows && panels_ == 2) _tile_stored(3, held_ + below + kPanel, kSumsRow * 4);
    QK_MEMORY_BARRIER();
    if (held_last_) drain_.rows(*held_job_, held_, 0, rows_);
    held_ = nullptr;
  }

  Ahead* ahead = nullptr;
  const idx* runs = nullptr;  // of A that lies in pieces: where they begin, seen from the first
  idx run_count = 1;
  idx apart = 0;  // bytes from the upper rows of A to the lower; 0: they follow

 private:
  // The first k step, in which the tile before leaves the registers.
  template <bool Lower, bool Two>
  void turn(const uint8_t* a, const uint8_t* b, idx a_stride, const uint8_t* w, idx w_panel, int32_t* sums, bool add) {
    const idx below = upper_rows(rows_) * kSumsRow;
    const bool fresh = add && held_ == sums;  // the same tile goes on: its sums are where they belong
    int32_t* const held = fresh ? nullptr : held_;
    QK_LOAD();
    QK_TURN(0, 0);
    QK_TDP(0, 4, 6);
    if constexpr (Lower) {
      QK_TURN(2, below);
      QK_TDP(2, 5, 6);
    }
    if constexpr (Two) {
      QK_TURN(1, kPanel);
      QK_TDP(1, 4, 7);
    }
    if constexpr (Lower && Two) {
      QK_TURN(3, below + kPanel);
      QK_TDP(3, 5, 7);
    }
  }

  // A function of its own, so that its loops have the registers for themselves.
  template <bool Lower, bool Two>
  __attribute__((noinline)) void run(const uint8_t* a, idx a_step, idx a_stride, const uint8_t* w, idx w_panel,
                                     idx steps, int32_t* sums, bool add) {
    const uint8_t* b = a + (apart ? apart : upper_rows(rows_) * a_stride);
    const bool drains = held_ && held_last_ && !(add && held_ == sums);
    int32_t* const drained = held_;
    const Job* const job = held_job_;
    QK_MEMORY_BARRIER();
    turn<Lower, Two>(a, b, a_stride, w, w_panel, sums, add);
    const idx a_time = padded(ceil_div(rows_, max_of(steps * run_count - 1, 1)), 2);
    idx left = drains ? rows_ : 0;
    if (drains && drain_.quick(*job)) {
      auto cursor = drain_.cursor(*job, drained);
      const auto take = [&](idx rows) QK_INLINE {
        left -= rows;
        cursor.rows(rows);
      };
      if (ahead && ahead->left > 0)
        fetching<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps,
                             [&]() QK_INLINE { take(min_of(a_time, left)); });
      else loop<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps, [&]() QK_INLINE { take(min_of(a_time, left)); });
      take(left);
    } else if (drains) {
      const auto take = [&](idx rows) {
        if (rows > 0) drain_.rows(*job, drained, rows_ - left, rows_ - left + rows);
        left -= rows;
      };
      loop<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps, [&] { take(min_of(a_time, left)); });
      take(left);
    } else if (ahead && ahead->left > 0) {
      fetching<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps, []() QK_INLINE {});
    } else {
      loop<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps, []() QK_INLINE {});
    }
    QK_MEMORY_BARRIER();
  }

  // The same while memory is fetched that will be wanted.
  template <bool Lower, bool Two, class Between>
  QK_INLINE void fetching(const uint8_t* a, const uint8_t* b, idx a_step, idx a_stride, const uint8_t* w, idx w_panel,
                          idx steps, const Between& between) {
    const uint8_t* next = ahead->next;
    const idx lines = ahead->a_step;
    loop<Lower, Two>(a, b, a_step, a_stride, w, w_panel, steps, [&]() QK_INLINE {
      between();
      for (idx i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, 2);
    });
    ahead->left -= lines * (steps * run_count - 1), ahead->next = next;
  }

  // k steps 1 …, with `between` behind each. Everything here must stay in registers.
  template <bool Lower, bool Two, class Between>
  QK_INLINE void loop(const uint8_t* a, const uint8_t* b, idx a_step, idx a_stride, const uint8_t* w, idx w_panel,
                      idx steps, const Between& between) {
    const uint8_t *const upper = a - a_step, *const lower = b - a_step;
    for (idx r = 0, s = 1;;) {
      for (; s < steps; ++s) {
        a += a_step, b += a_step, w += kTileK * kPanel;
        QK_LOAD();
        QK_TDP(0, 4, 6);
        if constexpr (Lower) QK_TDP(2, 5, 6);
        if constexpr (Two) QK_TDP(1, 4, 7);
        if constexpr (Lower && Two) QK_TDP(3, 5, 7);
        between();
      }
      if (++r >= run_count) break;
      a = upper + runs[r], b = lower + runs[r], s = 0;
    }
  }

  Drain& drain_;
  idx rows_ = 0;
  int panels_ = 0;
  int32_t* held_ = nullptr;  // where the sums in the registers belong
  bool held_last_ = false;
  static constexpr int kJobs = 3;  // one is written, one held, one drained
  Job jobs_[kJobs] = {};
  int next_job_ = 0;
  const Job* held_job_ = nullptr;
};

#undef QK_LOAD
#undef QK_TURN

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
