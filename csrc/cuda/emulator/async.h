// What happens later than it is written: cp.async, mbarriers, TMA.
//
// The ISA only says when a copy must have happened. A cp.async lands either at once (and overwrites what a slower warp
// still reads) or when its group is waited for (so that who reads earlier reads the bytes before); TMA boxes land in any
// order, and a multicast in every CTA at a time of its own.
#pragma once
#include "memory.h"

namespace qk::emulator {

// ---------------------------------------------------------------- cp.async
inline void land(const Copy16& copy) {
  uint8_t* to = shared_at(my_cta(), copy.to, 16, 16, "cp.async");
  memset(to, 0, 16);
  if (copy.bytes > 0) memcpy(to, copy.from, copy.bytes);
}

inline void cp_async_16(uint32_t to, const void* from, int bytes) {
  if (bytes < 0 || bytes > 16) fault("cp.async: %d bytes", bytes);
  if (bytes > 0) {
    check_aligned(from, 16, "cp.async");
    check_global(from, bytes, false, "cp.async");
  }
  shared_at(my_cta(), to, 16, 16, "cp.async");
  note(to, 16, "cp.async");
  const Copy16 copy{to, static_cast<const uint8_t*>(from), bytes};
  if (machine.chance(4)) land(copy);
  else me().copies.push_back(copy);
}

inline void cp_async_commit() {
  Lane& lane = me();
  lane.groups.push_back(std::move(lane.copies));
  lane.copies.clear();
}

inline void cp_async_wait(int still_under_way) {
  Lane& lane = me();
  for (; static_cast<int>(lane.groups.size()) > still_under_way; lane.groups.pop_front())
    for (const Copy16& copy : lane.groups.front()) land(copy);
}

// ---------------------------------------------------------------- mbarriers
inline Mbarrier& mbarrier_at(uint32_t address) {
  Cta& cta = cta_of(address);
  shared_at(cta, address, 8, 8, "mbarrier");
  auto found = cta.mbarriers.find(address & 0xFFFFFF);
  if (found == cta.mbarriers.end()) fault("no mbarrier was initialised at shared address %u", address & 0xFFFFFF);
  return found->second;
}

inline void complete_phase(Mbarrier& bar) {
  if (bar.pending != 0 || bar.bytes != 0) return;
  bar.phase ^= 1;
  bar.pending = bar.expected;
}

inline void mbarrier_init(uint32_t address, int arrivals) {
  shared_at(my_cta(), address, 8, 8, "mbarrier.init");
  if (my_cta().mbarriers.count(address)) fault("mbarrier.init: twice at shared address %u", address);
  Mbarrier bar;
  bar.expected = bar.pending = arrivals;
  my_cta().mbarriers[address] = bar;
}

inline void mbarrier_arrive(uint32_t address) {
  Mbarrier& bar = mbarrier_at(address);
  if (bar.pending <= 0) fault("mbarrier at %u: more arrivals than the %d of a phase", address & 0xFFFFFF, bar.expected);
  --bar.pending;
  complete_phase(bar);
}

inline void mbarrier_expect(uint32_t address, uint32_t bytes) {
  mbarrier_at(address).bytes += bytes;
  mbarrier_arrive(address);
}

inline void mbarrier_wait(uint32_t address, uint32_t parity) {
  Mbarrier& bar = mbarrier_at(address);
  while (bar.phase == parity) {
    me().bar = &bar;
    me().parity = parity;
    block(Wait::kMbarrier);
  }
}

// ---------------------------------------------------------------- TMA
inline void tma_load(uint32_t to, const TensorMap& map, uint32_t bar, int column, int row, uint16_t mask) {
  if (to % 1024 != 0) fault("TMA: a 128-byte swizzled box goes to a multiple of 1024, not %u", to);
  for (int rank = 0; rank < machine.cluster; ++rank) {
    if (!(mask >> rank & 1)) continue;
    Cta& cta = *machine.ctas[rank];
    if (cta.done) fault("TMA: into a CTA that has ended");
    shared_at(cta, to, static_cast<size_t>(map.box_rows) * map.box_columns, 1024, "TMA");
    machine.boxes.push_back({map, &cta, to, bar, column, row});
  }
  if (mask >> machine.cluster) fault("TMA: multicast to more CTAs than the cluster has");
}

inline uint32_t swizzled_128(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

inline void land(const Box& box) {
  const TensorMap& map = box.map;
  for (int r = 0; r < map.box_rows; ++r)
    for (int c = 0; c < map.box_columns; c += 16) {
      uint8_t* to = box.cta->shared.data() + swizzled_128(box.to + r * map.box_columns + c);
      memset(to, 0, 16);  // what lies outside of the matrix is zero, and its bytes count
      const int64_t row = box.row + r, column = box.column + c;
      if (row < 0 || row >= map.rows || column < 0 || column >= map.columns) continue;
      memcpy(to, map.base + row * map.pitch + column, std::min<int64_t>(16, map.columns - column));
    }
  auto found = box.cta->mbarriers.find(box.bar);
  if (found == box.cta->mbarriers.end()) throw Fault("TMA: no mbarrier was initialised where it reports");
  found->second.bytes -= static_cast<int64_t>(map.box_rows) * map.box_columns;
  complete_phase(found->second);
}

inline bool deliver_some() {
  bool any = false;
  while (!machine.boxes.empty() && machine.chance(3)) {
    const size_t at = machine.random() % machine.boxes.size();
    const Box box = machine.boxes[at];
    machine.boxes.erase(machine.boxes.begin() + at);
    land(box);
    any = true;
  }
  return any;
}

}  // namespace qk::emulator
