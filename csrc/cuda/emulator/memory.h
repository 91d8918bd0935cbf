// Shared and global memory: bounds, alignment, bank conflicts.
//
// A shared address is an offset into the CTA's own memory; that of another CTA of the cluster has its rank + 1 above
// bit 24, as mapa gives it.
#pragma once
#include "machine.h"

namespace qk::emulator {

inline uint32_t mapped(uint32_t address, int rank) {
  if (rank < 0 || rank >= machine.cluster) fault("mapa: no CTA %d in a cluster of %d", rank, machine.cluster);
  return (address & 0xFFFFFF) | static_cast<uint32_t>(rank + 1) << 24;
}

inline Cta& cta_of(uint32_t address) {
  if (address >> 24 == 0) return my_cta();
  Cta& cta = *machine.ctas[(address >> 24) - 1];
  if (cta.done) fault("an access to the shared memory of a CTA that has ended");
  return cta;
}

inline uint8_t* shared_at(Cta& cta, uint32_t address, size_t bytes, size_t alignment, const char* what) {
  const uint32_t offset = address & 0xFFFFFF;
  if (offset % alignment != 0) fault("%s: shared address %u is not a multiple of %zu", what, offset, alignment);
  if (offset + bytes > cta.shared.size())
    fault("%s: shared bytes %u…%zu of %zu", what, offset, offset + bytes, cta.shared.size());
  return cta.shared.data() + offset;
}

inline void note(uint32_t address, int bytes, const char* kind) { me().accesses.push_back({address, bytes, kind}); }

// 32 banks of 4 bytes. A wide access goes in phases of 128 bytes: 8 lanes of 16, 16 lanes of 8. In a phase each bank
// gives one word: whoever needs another word of it waits for a further cycle.
inline void count_conflicts(const std::vector<Access>& warp_wide) {
  const int bytes = warp_wide[0].bytes, phase = std::max(1, 128 / bytes);
  long& lost = machine.counters.conflicts[warp_wide[0].kind];
  ++machine.counters.accesses[warp_wide[0].kind];
  for (size_t first = 0; first < warp_wide.size(); first += phase) {
    std::array<std::vector<uint32_t>, 32> words;
    size_t worst = 1;
    for (size_t i = first; i < std::min(warp_wide.size(), first + phase); ++i)
      for (uint32_t word = warp_wide[i].address / 4; word < (warp_wide[i].address + bytes + 3) / 4; ++word) {
        auto& bank = words[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        worst = std::max(worst, bank.size());
      }
    lost += static_cast<long>(worst) - 1;
  }
}

// The i-th access of every lane since the last meeting is taken for one instruction.
inline void settle(Warp& warp) {
  size_t most = 0;
  for (const Lane& lane : warp.lanes) most = std::max(most, lane.accesses.size());
  std::vector<Access> together;
  for (size_t i = 0; i < most; ++i) {
    together.clear();
    for (const Lane& lane : warp.lanes)
      if (i < lane.accesses.size() && (together.empty() || lane.accesses[i].kind == together[0].kind))
        together.push_back(lane.accesses[i]);
    if (!together.empty()) count_conflicts(together);
  }
  for (Lane& lane : warp.lanes) lane.accesses.clear();
}

inline const char* kind_of(bool store, int bytes) {
  static const char* const names[2][5] = {{"ld.shared.1", "ld.shared.2", "ld.shared.4", "ld.shared.8", "ld.shared.16"},
                                          {"st.shared.1", "st.shared.2", "st.shared.4", "st.shared.8", "st.shared.16"}};
  int log = 0;
  while (1 << log < bytes) ++log;
  return names[store][log];
}

template <class T>
inline T load_shared(uint32_t address) {
  const char* kind = kind_of(false, sizeof(T));
  T value;
  memcpy(&value, shared_at(my_cta(), address, sizeof(T), sizeof(T), kind), sizeof(T));
  note(address, sizeof(T), kind);
  return value;
}

template <class T>
inline void store_shared(uint32_t address, const T& value) {
  const char* kind = kind_of(true, sizeof(T));
  memcpy(shared_at(my_cta(), address, sizeof(T), sizeof(T), kind), &value, sizeof(T));
  note(address, sizeof(T), kind);
}

// ---------------------------------------------------------------- global
inline void check_global(const void* address, size_t bytes, bool writes, const char* what) {
  if (machine.regions.empty()) return;
  const auto* begin = static_cast<const uint8_t*>(address);
  for (const Region& region : machine.regions)
    if (begin >= region.begin && begin + bytes <= region.end && (region.writeable || !writes)) return;
  fault("%s: %zu bytes of global memory outside of every array that it may %s", what, bytes, writes ? "write" : "read");
}

inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fault("%s: the address is not a multiple of %zu", what, bytes);
}

template <class T>
inline T load_global(const T* address) {
  check_aligned(address, sizeof(T), "ld.global");
  check_global(address, sizeof(T), false, "ld.global");
  T value;
  memcpy(&value, address, sizeof(T));
  return value;
}

template <class T>
inline void store_global(T* address, const T& value) {
  check_aligned(address, sizeof(T), "st.global");
  check_global(address, sizeof(T), true, "st.global");
  memcpy(static_cast<void*>(address), &value, sizeof(T));
}

inline void red_add(int32_t* address, int32_t value) {
  check_aligned(address, 4, "red.global.add");
  check_global(address, 4, true, "red.global.add");
  *address = static_cast<int32_t>(static_cast<uint32_t>(*address) + static_cast<uint32_t>(value));
}
inline void red_max(uint32_t* address, uint32_t value) {
  check_aligned(address, 4, "red.global.max");
  check_global(address, 4, true, "red.global.max");
  if (value > *address) *address = value;
}

}  // namespace qk::emulator
