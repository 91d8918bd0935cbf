#include "features.h"

#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

namespace qk {
namespace {

// Order is that of the table in detect().
enum {
  kAvx2,
  kFma,
  kAvxVnni,
  kAvx512f,
  kAvx512bw,
  kAvx512vl,
  kAvx512Vbmi,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmxTile,
  kAmxInt8,
  kAmxBf16,
  kAmxPermitted,
  kFeatures
};

struct Detected {
  Feature table[kFeatures];
};

#if defined(__x86_64__)

unsigned long long enabled_states() {  // XCR0: which registers the operating system saves
  unsigned eax, edx;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (static_cast<unsigned long long>(edx) << 32) | eax;
}

bool amx_permission() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Detected detect() {
  unsigned a = 0, b = 0, c = 0, d = 0, c1 = 0, b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  unsigned long long xcr0 = 0;
  if (__get_cpuid(1, &a, &b, &c1, &d) && (c1 & bit_OSXSAVE)) xcr0 = enabled_states();
  if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  const bool ymm = (xcr0 & 0x6) == 0x6, zmm = (xcr0 & 0xe6) == 0xe6, tiles = (xcr0 & 0x60000) == 0x60000;
  const bool amx_tile = tiles && (d7 >> 24 & 1), amx_int8 = amx_tile && (d7 >> 25 & 1);
  return {{{"avx2", ymm && (b7 >> 5 & 1)},
           {"fma", ymm && (c1 >> 12 & 1)},
           {"avx_vnni", ymm && (a71 >> 4 & 1)},
           {"avx512f", zmm && (b7 >> 16 & 1)},
           {"avx512bw", zmm && (b7 >> 30 & 1)},
           {"avx512vl", zmm && (b7 >> 31 & 1)},
           {"avx512_vbmi", zmm && (c7 >> 1 & 1)},
           {"avx512_vnni", zmm && (c7 >> 11 & 1)},
           {"avx512_bf16", zmm && (a71 >> 5 & 1)},
           {"amx_tile", amx_tile},
           {"amx_int8", amx_int8},
           {"amx_bf16", amx_tile && (d7 >> 22 & 1)},
           {"amx_permission", amx_int8 && amx_permission()}}};
}

#else

Detected detect() { return {}; }

#endif

const Detected& detected() {
  static const Detected once = detect();
  return once;
}

}  // namespace

Features cpu_features() {
#if defined(__x86_64__)
  return {detected().table, kFeatures};
#else
  return {nullptr, 0};
#endif
}

bool cpu_runs(const char* isa) {
#ifdef QK_EMULATE
  return true;
#endif
  const auto has = [](auto... wanted) { return (detected().table[wanted].present && ...); };
  const auto is = [isa](const char* name) { return strcmp(isa, name) == 0; };
  if (is("portable")) return true;
  if (is("x86_avx2")) return has(kAvx2, kFma);
  if (is("x86_avxvnni")) return has(kAvx2, kFma, kAvxVnni);
  if (is("x86_avx512bw")) return has(kAvx512f, kAvx512bw, kAvx512vl);
  if (is("x86_avx512vnni")) return has(kAvx512f, kAvx512bw, kAvx512vl, kAvx512Vnni);
  if (is("x86_amx")) return has(kAvx512f, kAvx512bw, kAvx512vl, kAmxTile, kAmxInt8, kAmxPermitted);
  if (is("x86_amx_conv")) return cpu_runs("x86_amx") && has(kAvx512Vbmi);
  if (is("x86_amxbf16")) return cpu_runs("x86_amx") && has(kAvx512Bf16, kAmxBf16);
  return false;
}

long cache_bytes(int level) {
  const long usual = level == 1 ? 32 << 10 : 512 << 10;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return usual;
}

}  // namespace qk
