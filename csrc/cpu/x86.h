// The x86 intrinsics: the compiler's, or, with QK_EMULATE, plain C++ of the same meaning, so that the unmodified
// kernels can be executed and checked on any CPU. A kernel must not include <immintrin.h> by itself.
#pragma once
#ifdef QK_EMULATE
#include "emulate/x86.h"
#else
// gcc 12 warns of its own "undefined" operands in the AVX-512 header.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#define QK_KEEP(reg) \
  __asm__ volatile("" : "+v"(reg))  // the compiler must have the value here, and forgets what it knew

// Tile loads are volatile asm that does not say that it reads memory: keeps ordinary stores on their side.
#define QK_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

#ifdef __AMX_TILE__
// gcc 12's _tile_loadconfig declares 8 of the 64 bytes as read, so a local configuration is optimised away.
static inline void qk_tile_loadconfig(const void* config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(*static_cast<const char (*)[64]>(config)));
}
#endif
#endif
