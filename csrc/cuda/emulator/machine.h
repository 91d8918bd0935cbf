// The machine: lanes, warps, CTAs, one cluster at a time, and the schedule.
//
// A lane runs until it has to wait: for its warp (a collective instruction), a barrier, an mbarrier, its cluster. Warps
// come in an order shuffled in every sweep, run for a random while, are left out at random and sleep, and CTAs start at
// different times, so that a kernel which needs one order of things is found out. Whatever is asynchronous is late, early
// and out of order (async.h). All of it follows from `seed`: a failure can be run again.
//
// A lane's mistake is thrown as a Fault in its own fiber; launch() hands it to the caller. Nothing here can prove a
// kernel right about the memory model (a missing proxy fence), and it says nothing about speed but bank conflicts.
#pragma once
#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace qk::emulator {

constexpr int kLanes = 32;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---------------------------------------------------------------- state
struct Barrier {  // bar.sync id: of a CTA
  int arrived = 0;
};

struct Mbarrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;  // expect_tx less complete_tx
  uint32_t phase = 0;
};

struct Copy16 {  // one cp.async
  uint32_t to;
  const uint8_t* from;
  int bytes;
};

struct Access {  // one lane's access to shared memory, for the count of bank conflicts
  uint32_t address;
  int bytes;
  const char* kind;
};

enum class Wait : uint8_t { kNothing, kWarp, kBarrier, kMbarrier, kCluster };

struct Warp;
struct Cta;

struct Lane {
  Context context;
  Warp* warp = nullptr;
  int index = 0;  // in its warp
  bool done = false;
  Wait wait = Wait::kNothing;
  Mbarrier* bar = nullptr;  // kMbarrier: until the phase of this parity is complete
  uint32_t parity = 0;
  int barrier = 0;  // kBarrier: which
  std::vector<Copy16> copies;
  std::deque<std::vector<Copy16>> groups;
  std::vector<Access> accesses;
};

struct Product {  // one wgmma of one warp
  uint64_t a, w;
  int n;
  bool a_signed, w_signed, accumulate;
  std::array<int32_t*, kLanes> d;
};

struct Warp {
  Cta* cta = nullptr;
  int index = 0;  // in its CTA
  std::array<Lane, kLanes> lanes;
  int arrived = 0;  // lanes that wait in the collective instruction `instruction`
  const char* instruction = "";
  std::array<void*, kLanes> slots{};
  int asleep = 0;       // sweeps that it is left out of
  bool fenced = false;  // wgmma.fence since the accumulators were last touched
  std::vector<Product> products;
  std::deque<std::vector<Product>> groups;
};

struct Cta {
  int rank = 0;                // in its cluster
  std::array<int, 3> block{};  // blockIdx
  std::vector<uint8_t> shared;
  std::vector<std::unique_ptr<Warp>> warps;
  std::map<int, Barrier> barriers;
  std::map<uint32_t, Mbarrier> mbarriers;
  bool done = false;
};

struct TensorMap {  // of a matrix of bytes, as cuTensorMapEncodeTiled would have it, 128-byte swizzle
  const uint8_t* base = nullptr;
  int64_t rows = 0, columns = 0, pitch = 0;
  int box_rows = 0, box_columns = 0;
};

struct Box {  // a TMA load under way to one CTA
  TensorMap map;
  Cta* cta;
  uint32_t to, bar;
  int column, row;
};

struct Region {  // of global memory that the kernel may touch
  const uint8_t* begin;
  const uint8_t* end;
  bool writeable;
};

struct Counters {
  long launches = 0, switches = 0, products = 0;
  std::map<std::string, long> accesses, conflicts;  // by kind: "ldmatrix", "cp.async", "wgmma", "st.shared.8" …
};

struct Machine {
  unsigned seed = 1;  // set by tests
  Counters counters;
  std::vector<Region> regions;  // empty: global memory is not checked
  // of the launch under way
  std::mt19937 random;
  std::array<int, 3> grid{};
  int threads = 0, cluster = 1;
  std::vector<std::unique_ptr<Cta>> ctas;
  std::vector<Box> boxes;
  int cluster_arrived = 0;
  Context scheduler;
  Lane* lane = nullptr;  // that runs
  std::function<void()> body;
  std::string fault;
  bool chance(unsigned one_in) { return random() % one_in == 0; }
};

inline Machine machine;

inline Lane& me() { return *machine.lane; }
inline Warp& my_warp() { return *me().warp; }
inline Cta& my_cta() { return *my_warp().cta; }

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fault(const char* format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  std::string where;
  if (machine.lane) {
    const Cta& cta = my_cta();
    char place[120];
    snprintf(place, sizeof place, " (block %d,%d,%d warp %d lane %d, seed %u)", cta.block[0], cta.block[1],
             cta.block[2], my_warp().index, me().index, machine.seed);
    where = place;
  }
  throw Fault(text + where);
}

// ---------------------------------------------------------------- waiting
void settle(Warp& warp);  // memory.h: counts the bank conflicts of the accesses since the last one

inline void block(Wait wait) {
  Lane& lane = me();
  lane.wait = wait;
  ++machine.counters.switches;
  switch_to(lane.context, machine.scheduler);
}

inline void release(Warp& warp, Wait wait) {
  for (Lane& lane : warp.lanes)
    if (lane.wait == wait) lane.wait = Wait::kNothing;
}

// All 32 lanes meet in one instruction. Each brings an argument; the last one runs finish(warp), whose warp.slots they are.
template <class Finish>
inline void meet(const char* instruction, void* argument, Finish finish) {
  Warp& warp = my_warp();
  if (warp.arrived == 0) warp.instruction = instruction;
  if (strcmp(warp.instruction, instruction) != 0)
    fault("lanes of one warp are in %s and in %s", warp.instruction, instruction);
  warp.slots[me().index] = argument;
  if (++warp.arrived < kLanes) return block(Wait::kWarp);
  warp.arrived = 0;
  settle(warp);
  finish(warp);
  release(warp, Wait::kWarp);
}

inline void barrier_sync(int id, int threads) {
  Cta& cta = my_cta();
  Barrier& bar = cta.barriers[id];
  me().barrier = id;
  if (++bar.arrived < threads) return block(Wait::kBarrier);
  if (bar.arrived > threads) fault("bar.sync %d: more than its %d threads arrived", id, threads);
  bar.arrived = 0;
  for (auto& warp : cta.warps) {
    settle(*warp);
    for (Lane& lane : warp->lanes)
      if (lane.wait == Wait::kBarrier && lane.barrier == id) lane.wait = Wait::kNothing;
  }
}

inline void cluster_sync() {
  if (++machine.cluster_arrived < machine.threads * machine.cluster) return block(Wait::kCluster);
  machine.cluster_arrived = 0;
  for (auto& cta : machine.ctas)
    for (auto& warp : cta->warps) release(*warp, Wait::kCluster);
}

inline bool ready(const Lane& lane) {
  if (lane.done) return false;
  if (lane.wait == Wait::kMbarrier) return lane.bar->phase != lane.parity;
  return lane.wait == Wait::kNothing;
}

// ---------------------------------------------------------------- the schedule
bool deliver_some();  // async.h: true if anything arrived

inline void enter_lane() {
  try {
    machine.body();
    if (!me().copies.empty()) fault("a thread ends with cp.async that it never committed");
  } catch (const std::exception& error) {
    if (machine.fault.empty()) machine.fault = error.what();
  }
  me().done = true;
  switch_to(me().context, machine.scheduler);
}

// Runs a warp for a random number of rounds; true if any lane ran.
inline bool run(Warp& warp) {
  bool ran = false;
  for (unsigned rounds = 1 + machine.random() % 48; rounds > 0; --rounds) {
    bool ran_now = false;
    const bool backwards = machine.random() & 1;
    for (int i = 0; i < kLanes && machine.fault.empty(); ++i) {
      Lane& lane = warp.lanes[backwards ? kLanes - 1 - i : i];
      if (!ready(lane)) continue;
      lane.wait = Wait::kNothing;
      machine.lane = &lane;
      switch_to(machine.scheduler, lane.context);
      machine.lane = nullptr;
      ran_now = true;
    }
    ran |= ran_now;
    if (!ran_now || !machine.fault.empty()) break;
  }
  return ran;
}

inline bool anybody_ready() {
  for (auto& cta : machine.ctas)
    for (auto& warp : cta->warps)
      for (const Lane& lane : warp->lanes)
        if (ready(lane)) return true;
  return false;
}

inline std::string who_waits() {
  static const char* const names[] = {"nothing", "its warp", "a barrier", "an mbarrier", "its cluster"};
  std::string text;
  for (auto& cta : machine.ctas)
    for (auto& warp : cta->warps)
      for (Lane& lane : warp->lanes) {
        if (lane.done) continue;
        char one[120];
        snprintf(one, sizeof one, "; CTA %d warp %d lane %d waits for %s", cta->rank, warp->index, lane.index,
                 names[static_cast<int>(lane.wait)]);
        if (text.size() < 250) text += one;
        break;
      }
  return text;
}

inline void check_exit(Cta& cta) {
  for (const Box& box : machine.boxes)
    if (box.cta == &cta) fault("a CTA ended while a TMA load into it was under way");
  for (const auto& [address, bar] : cta.mbarriers)
    if (bar.bytes != 0)
      fault("the mbarrier at %u is left with %ld bytes expected", address, static_cast<long>(bar.bytes));
  cta.done = true;
}

inline void run_cluster() {
  std::vector<Warp*> warps;
  for (auto& cta : machine.ctas)
    for (auto& warp : cta->warps) warps.push_back(warp.get());
  for (;;) {
    std::shuffle(warps.begin(), warps.end(), machine.random);
    bool ran = false;
    for (Warp* warp : warps) {
      if (warp->asleep == 0 && machine.chance(16)) warp->asleep = static_cast<int>(machine.random() % 12);
      if (warp->asleep > 0 || machine.chance(4)) {
        warp->asleep = std::max(0, warp->asleep - 1);
        continue;
      }
      ran |= run(*warp);
      if (!machine.fault.empty()) throw Fault(machine.fault);
    }
    ran |= deliver_some();
    bool all = true;
    for (auto& cta : machine.ctas) {
      bool done = true;
      for (auto& warp : cta->warps)
        for (Lane& lane : warp->lanes) done &= lane.done;
      if (done && !cta->done) check_exit(*cta);
      all &= done;
    }
    if (all) return;
    if (!ran && machine.boxes.empty() && !anybody_ready()) throw Fault("deadlock" + who_waits());
  }
}

inline void make_cta(Cta& cta, int threads, size_t shared_bytes, size_t first_stack) {
  cta.shared.assign(shared_bytes, 0xCD);  // whatever a kernel reads before it was written is wrong, and the same wrong
  const int late = machine.chance(2) ? static_cast<int>(machine.random() % 30) : 0;  // CTAs do not start together
  for (int w = 0; w < threads / kLanes; ++w) {
    cta.warps.push_back(std::make_unique<Warp>());
    Warp& warp = *cta.warps.back();
    warp.cta = &cta;
    warp.asleep = late;
    warp.index = w;
    for (int i = 0; i < kLanes; ++i) {
      warp.lanes[i].warp = &warp;
      warp.lanes[i].index = i;
      prepare(warp.lanes[i].context, stack_of(first_stack + w * kLanes + i), enter_lane);
    }
  }
}

// body: the kernel with its arguments, run once a thread. Clusters lie along x.
inline void launch(std::array<int, 3> grid, int threads, int cluster, size_t shared_bytes, std::function<void()> body) {
  if (threads % kLanes != 0 || threads > 1024) throw Fault("a CTA has whole warps, and 1024 threads at most");
  if (grid[0] % cluster != 0) throw Fault("the grid is not made of whole clusters");
  machine.random.seed(machine.seed);
  machine.grid = grid;
  machine.threads = threads;
  machine.cluster = cluster;
  machine.body = std::move(body);
  ++machine.counters.launches;
  const int clusters = grid[0] / cluster * grid[1] * grid[2];
  std::vector<int> order(clusters);
  for (int i = 0; i < clusters; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), machine.random);
  for (int at : order) {
    machine.fault.clear();
    machine.boxes.clear();
    machine.ctas.clear();
    machine.cluster_arrived = 0;
    const int x = at % (grid[0] / cluster) * cluster, y = at / (grid[0] / cluster) % grid[1];
    const int z = at / (grid[0] / cluster) / grid[1];
    for (int rank = 0; rank < cluster; ++rank) {
      machine.ctas.push_back(std::make_unique<Cta>());
      Cta& cta = *machine.ctas.back();
      cta.rank = rank;
      cta.block = {x + rank, y, z};
      make_cta(cta, threads, shared_bytes, static_cast<size_t>(rank) * threads);
    }
    run_cluster();
  }
  machine.ctas.clear();
}

}  // namespace qk::emulator
