// A fiber: a stack, and a switch to it. Every CUDA thread of the emulator is one.
//
// Why not ucontext: swapcontext asks the operating system for the signal mask, 0.3 µs a switch; a kernel on 384 threads
// makes millions. This one saves what the ABI calls callee-saved, and nothing else. ucontext is the other CPUs' fallback.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace qk::emulator {

constexpr size_t kStackBytes = 64 << 10;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};

__attribute__((naked, noinline)) static void switch_stacks(void**, void*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

inline void switch_to(Context& from, Context& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }

// The first switch to it "returns" into entry, which must never return.
inline void prepare(Context& context, uint8_t* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;                         // where entry would return to: ends a debugger's walk
  *--top = reinterpret_cast<void*>(entry);  // what `ret` pops; then the stack is as after a call
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context {
  ucontext_t context;
};

inline void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

inline void prepare(Context& context, uint8_t* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStackBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

// Stacks are mapped once and kept; pages that no fiber reaches cost nothing.
inline uint8_t* stack_of(size_t index) {
  static std::vector<uint8_t*> stacks;
  while (stacks.size() <= index) {
    void* room = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) throw std::bad_alloc();
    stacks.push_back(static_cast<uint8_t*>(room));
  }
  return stacks[index];
}

}  // namespace qk::emulator
