// What the trials of test_cuda_mutants.py share: the planted bug's number, memory that kernels may touch, the verdict.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <vector>

extern int qk_mutant;
int qk_mutant = 0;

#include FAMILY

namespace lab {

inline std::vector<void*> rooms;

// Of count elements, to the byte: what lies behind is not the kernel's.
template <class T>
T* room(int64_t count, bool writeable = false) {
  const int64_t bytes = count * int64_t(sizeof(T));
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(16, (bytes + 31) / 16 * 16));
  for (int64_t i = 0; i < bytes; ++i) memory[i] = 0x5A;
  rooms.push_back(memory);
  qk::emulator::machine.regions.push_back({memory, memory + bytes, writeable});
  return reinterpret_cast<T*>(memory);
}

template <class T>
T* random_room(std::mt19937& random, int64_t count, bool writeable = false) {
  T* memory = room<T>(count, writeable);
  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  for (int64_t i = 0; i < count * int64_t(sizeof(T)); ++i) bytes[i] = uint8_t(random());
  return memory;
}

inline void begin(unsigned seed) {
  for (void* memory : rooms) std::free(memory);
  rooms.clear();
  qk::emulator::machine.regions.clear();
  qk::emulator::machine.counters = {};
  qk::emulator::machine.seed = seed;
}

// 0 exact, 1 wrong numbers, 2 a fault, whose text is in `message`. is_right runs the kernel and compares.
template <class Check>
int verdict(char* message, Check is_right) {
  try {
    return is_right() ? 0 : 1;
  } catch (const std::exception& error) {
    snprintf(message, 400, "%s", error.what());
    return 2;
  }
}

inline long conflicts_of(std::initializer_list<const char*> kinds) {
  long count = 0;
  for (const char* kind : kinds) count += qk::emulator::machine.counters.conflicts[kind];
  return count;
}

}  // namespace lab

extern "C" void plant(int mutant) { qk_mutant = mutant; }
