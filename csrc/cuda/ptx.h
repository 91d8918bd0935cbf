// The seam: everything that a kernel asks of the hardware, and the only file with inline PTX or compiler builtins.
//
// Each function has two bodies. Under nvcc it is PTX; under any other compiler it is the emulator (emulator/*.h), which
// runs the same kernels, unmodified, on a CPU. A kernel includes this file and plain headers, and names neither
// threadIdx nor a shared array: shared memory is a 32-bit address, global memory is read and written through load and
// store, so that the emulator sees every access.
//
// Instructions and their fragment layouts: PTX ISA 9.0, sections 9.7.9 (cp.async, TMA), 9.7.13 (mbarrier), 9.7.14 (mma),
// 9.7.15 (wgmma).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qk {

struct alignas(16) Words4 {  // one access of 128 bits
  uint32_t x[4];
};
struct alignas(8) Words2 {
  uint32_t x[2];
};

}  // namespace qk

#if defined(__CUDACC__)
// ================================================================ PTX
#include <cuda.h>
#include <cuda_runtime.h>

#define QK_DEVICE __device__ __forceinline__
#define QK_KERNEL(threads, ctas_an_sm) __global__ void __launch_bounds__(threads, ctas_an_sm)
#define QK_ARGUMENT const __grid_constant__
#define QK_UNROLL _Pragma("unroll")
#define QK_NO_UNROLL _Pragma("unroll 1")

namespace qk { using TensorMap = CUtensorMap; }

namespace qk::ptx {

// ---------------------------------------------------------------- who am I
QK_DEVICE int thread() { return threadIdx.x; }
QK_DEVICE int block_x() { return blockIdx.x; }
QK_DEVICE int block_y() { return blockIdx.y; }
QK_DEVICE int block_z() { return blockIdx.z; }
QK_DEVICE int grid_x() { return gridDim.x; }
QK_DEVICE int grid_y() { return gridDim.y; }

// ---------------------------------------------------------------- memory
// The CTA's shared memory, a multiple of 1024.
QK_DEVICE uint32_t shared_memory() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

template <class T>
QK_DEVICE T load_shared(uint32_t address) {
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}
template <class T>
QK_DEVICE void store_shared(uint32_t address, const T& value) {
  *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

// Read-only for the kernel's whole life.
template <class T>
QK_DEVICE T load(const T* from) {
  static_assert(sizeof(T) <= 16, "one access");
  T value;
  if constexpr (sizeof(T) == 16) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    __builtin_memcpy(&value, &raw, 16);
  } else if constexpr (sizeof(T) == 8) {
    const uint2 raw = __ldg(reinterpret_cast<const uint2*>(from));
    __builtin_memcpy(&value, &raw, 8);
  } else if constexpr (sizeof(T) == 4) {
    const unsigned raw = __ldg(reinterpret_cast<const unsigned*>(from));
    __builtin_memcpy(&value, &raw, 4);
  } else if constexpr (sizeof(T) == 2) {
    const unsigned short raw = __ldg(reinterpret_cast<const unsigned short*>(from));
    __builtin_memcpy(&value, &raw, 2);
  } else {
    const unsigned char raw = __ldg(reinterpret_cast<const unsigned char*>(from));
    __builtin_memcpy(&value, &raw, 1);
  }
  return value;
}
template <class T>
QK_DEVICE T load_written(const T* from) {  // what this kernel writes as well
  return *from;
}
template <class T>
QK_DEVICE void store(T* to, const T& value) {
  if constexpr (sizeof(T) == 16) {  // said as one: the compiler may take a struct apart, and store its words
    uint32_t x[4];
    __builtin_memcpy(x, &value, 16);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    uint32_t x[2];
    __builtin_memcpy(x, &value, 8);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(x[0]), "r"(x[1]) : "memory");
  } else {
    *to = value;
  }
}
QK_DEVICE void red_add(int32_t* to, int32_t value) {
  asm volatile("red.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
QK_DEVICE void red_max(uint32_t* to, uint32_t value) {
  asm volatile("red.global.max.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// ---------------------------------------------------------------- barriers
QK_DEVICE void cta_sync() { __syncthreads(); }
QK_DEVICE void warp_sync() { __syncwarp(); }
QK_DEVICE uint32_t shuffle(uint32_t value, int from) { return __shfl_sync(0xFFFFFFFFu, value, from); }

// ---------------------------------------------------------------- products of a thread and of a warp
#define QK_BY_TYPES(call)                                       \
  if constexpr (kASigned && kWSigned) call("s8.s8", "s32.s32"); \
  else if constexpr (kASigned) call("s8.u8", "s32.u32");        \
  else if constexpr (kWSigned) call("u8.s8", "u32.s32");        \
  else call("u8.u8", "u32.u32");

template <bool kASigned, bool kWSigned>
QK_DEVICE int32_t dp4a(uint32_t a, uint32_t w, int32_t sum) {
  int32_t d;
#define QK_ONE(bytes, words) asm("dp4a." words " %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(w), "r"(sum))
  QK_BY_TYPES(QK_ONE)
#undef QK_ONE
  return d;
}

QK_DEVICE void ldmatrix_x4(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

template <bool kASigned, bool kWSigned>
QK_DEVICE void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t* w) {
#define QK_ONE(bytes, words)                                                \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." bytes               \
               ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(w[0]), "r"(w[1]))
  QK_BY_TYPES(QK_ONE)
#undef QK_ONE
}

template <bool kASigned, bool kWSigned>
QK_DEVICE void mma_m8n8k16(int32_t (&d)[2], uint32_t a, uint32_t w) {
#define QK_ONE(bytes, words)                                                                      \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." bytes ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
               : "+r"(d[0]), "+r"(d[1])                                                           \
               : "r"(a), "r"(w))
  QK_BY_TYPES(QK_ONE)
#undef QK_ONE
}

// ---------------------------------------------------------------- pairs of halves (sm_80)
enum class Half { kF16, kBf16 };

// x·y + z of both halves, each rounded once.
template <Half kHalf>
QK_DEVICE uint32_t fma_pair(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t d;
  if constexpr (kHalf == Half::kF16) asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  else asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  return d;
}
QK_DEVICE uint32_t add_pair(uint32_t x, uint32_t y) {  // f16
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(y));
  return d;
}
QK_DEVICE float float_of_half(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
QK_DEVICE uint32_t bfloat_pair(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
// (x & mask) | bits in one instruction: from the C++ the compiler makes two.
QK_DEVICE uint32_t pick(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(x), "r"(mask), "r"(bits));
  return d;
}
// Bytes of y above those of x, chosen by the four digits of `which`.
QK_DEVICE uint32_t permute(uint32_t x, uint32_t y, uint32_t which) { return __byte_perm(x, y, which); }
// x·y + z, rounded once (A10).
QK_DEVICE float fused(float x, float y, float z) { return __fmaf_rn(x, y, z); }

template <Half kHalf>
QK_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t* w) {
#define QK_ONE(type)                                                        \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(w[0]), "r"(w[1]))
  if constexpr (kHalf == Half::kF16) QK_ONE("f16");
  else QK_ONE("bf16");
#undef QK_ONE
}

// ---------------------------------------------------------------- cp.async (sm_80)
// 16 bytes of shared memory: `bytes` of them from global memory, zeros behind.
QK_DEVICE void cp_async_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
QK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kUnderWay>
QK_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

// ---------------------------------------------------------------- mbarriers, clusters, TMA, wgmma (sm_90a)
QK_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
QK_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another CTA of the cluster.
QK_DEVICE uint32_t mapped(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
QK_DEVICE void mbarrier_init(uint32_t bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
QK_DEVICE void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
QK_DEVICE void mbarrier_expect(uint32_t bar, uint32_t bytes) {  // arrives, too
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
QK_DEVICE void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Of any CTA of the cluster. Not .release.cluster: who arrives has only read, and a fence of the GPU would be waited for
// at every stage (MEMBAR in the machine code).
QK_DEVICE void mbarrier_arrive_mapped(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
QK_DEVICE void mbarrier_wait(uint32_t bar, uint32_t parity) {  // until the phase of this parity is complete
  uint32_t complete;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, "
        "p;\n}"
        : "=r"(complete)
        : "r"(bar), "r"(parity)
        : "memory");
  } while (!complete);
}
QK_DEVICE void tma_load(uint32_t to, const TensorMap* map, uint32_t bar, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(bar), "r"(column), "r"(row)
      : "memory");
}
// Into every CTA of the mask, at the same place, reporting to the barrier at the same place.
QK_DEVICE void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t bar, int column, int row, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(bar), "r"(column), "r"(row), "h"(mask)
      : "memory");
}
template <int kRegisters>
QK_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
QK_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
QK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
QK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kUnderWay>
QK_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kUnderWay) : "memory");
}

// clang-format off
#define QK_LIST_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QK_LIST_16 QK_LIST_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define QK_LIST_32 QK_LIST_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QK_LIST_64 QK_LIST_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QK_LIST_128 QK_LIST_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define QK_OUT_8(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
  "+r"(d[i + 6]), "+r"(d[i + 7])
#define QK_OUT_16(d, i) QK_OUT_8(d, i), QK_OUT_8(d, i + 8)
#define QK_OUT_32(d, i) QK_OUT_16(d, i), QK_OUT_16(d, i + 16)
#define QK_OUT_64(d, i) QK_OUT_32(d, i), QK_OUT_32(d, i + 32)
#define QK_OUT_128(d, i) QK_OUT_64(d, i), QK_OUT_64(d, i + 64)
// clang-format on

#define QK_WGMMA(n, registers, a_at, w_at, p_at, bytes)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k32.s32." bytes \
               " {" QK_LIST_##registers "}, " a_at ", " w_at ", p;\n}"                                                \
               : QK_OUT_##registers(d, 0)                                                                             \
               : "l"(a), "l"(w), "r"(static_cast<int>(accumulate)))

// d += A · Wᵀ of 64 rows, kN columns and 32 k, both operands in shared memory (d = where not accumulate).
template <int kN, bool kASigned, bool kWSigned>
QK_DEVICE void wgmma(int32_t (&d)[kN / 2], uint64_t a, uint64_t w, bool accumulate) {
  static_assert(kN == 16 || kN == 32 || kN == 64 || kN == 128 || kN == 256, "one of the sizes written out here");
#define QK_ONE(bytes, words)                                                     \
  do {                                                                           \
    if constexpr (kN == 16) QK_WGMMA(16, 8, "%8", "%9", "%10", bytes);           \
    else if constexpr (kN == 32) QK_WGMMA(32, 16, "%16", "%17", "%18", bytes);   \
    else if constexpr (kN == 64) QK_WGMMA(64, 32, "%32", "%33", "%34", bytes);   \
    else if constexpr (kN == 128) QK_WGMMA(128, 64, "%64", "%65", "%66", bytes); \
    else QK_WGMMA(256, 128, "%128", "%129", "%130", bytes);                      \
  } while (0)
  QK_BY_TYPES(QK_ONE)
#undef QK_ONE
}

}  // namespace qk::ptx

#else
// ================================================================ the emulator
#include "emulator/floats.h"

#define QK_DEVICE inline
#define QK_KERNEL(threads, ctas_an_sm) inline void
#define QK_ARGUMENT const
#define QK_UNROLL
#define QK_NO_UNROLL

namespace qk { using TensorMap = emulator::TensorMap; }

namespace qk::ptx {

inline int thread() { return emulator::my_warp().index * emulator::kLanes + emulator::me().index; }
inline int block_x() { return emulator::my_cta().block[0]; }
inline int block_y() { return emulator::my_cta().block[1]; }
inline int block_z() { return emulator::my_cta().block[2]; }
inline int grid_x() { return emulator::machine.grid[0]; }
inline int grid_y() { return emulator::machine.grid[1]; }

inline uint32_t shared_memory() { return 0; }
template <class T>
inline T load_shared(uint32_t address) {
  return emulator::load_shared<T>(address);
}
template <class T>
inline void store_shared(uint32_t address, const T& value) {
  emulator::store_shared(address, value);
}
template <class T>
inline T load(const T* from) {
  return emulator::load_global(from);
}
template <class T>
inline T load_written(const T* from) {
  return emulator::load_global(from);
}
template <class T>
inline void store(T* to, const T& value) {
  emulator::store_global(to, value);
}
inline void red_add(int32_t* to, int32_t value) { emulator::red_add(to, value); }
inline void red_max(uint32_t* to, uint32_t value) { emulator::red_max(to, value); }

inline void cta_sync() { emulator::barrier_sync(0, emulator::machine.threads); }
inline void warp_sync() { emulator::warp_sync(); }
inline uint32_t shuffle(uint32_t value, int from) { return emulator::shuffle(value, from); }

template <bool kASigned, bool kWSigned>
inline int32_t dp4a(uint32_t a, uint32_t w, int32_t sum) {
  return emulator::dp4a(a, w, sum, kASigned, kWSigned);
}
inline void ldmatrix_x4(uint32_t (&out)[4], uint32_t address) { emulator::ldmatrix_x4(out, address); }
template <bool kASigned, bool kWSigned>
inline void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t* w) {
  emulator::mma<16, 32, kASigned, kWSigned>(d, a, w);
}
template <bool kASigned, bool kWSigned>
inline void mma_m8n8k16(int32_t (&d)[2], uint32_t a, uint32_t w) {
  emulator::mma<8, 16, kASigned, kWSigned>(d, &a, &w);
}

enum class Half { kF16, kBf16 };
template <Half kHalf>
inline uint32_t fma_pair(uint32_t x, uint32_t y, uint32_t z) {
  return emulator::fma_pair(x, y, z, kHalf == Half::kBf16);
}
inline uint32_t add_pair(uint32_t x, uint32_t y) { return emulator::fma_pair(x, 0x3C003C00u, y, false); }
inline float float_of_half(uint16_t half) { return static_cast<float>(emulator::half_value(half, false)); }
inline uint32_t bfloat_pair(float low, float high) { return emulator::bfloat_pair(low, high); }
inline uint32_t pick(uint32_t x, uint32_t mask, uint32_t bits) { return (x & mask) | bits; }
inline uint32_t permute(uint32_t x, uint32_t y, uint32_t which) { return emulator::permute(x, y, which); }
inline float fused(float x, float y, float z) { return std::fma(x, y, z); }
template <Half kHalf>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t* w) {
  emulator::mma_floats<kHalf == Half::kBf16>(d, a, w);
}

inline void cp_async_16(uint32_t to, const void* from, int bytes) { emulator::cp_async_16(to, from, bytes); }
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int kUnderWay>
inline void cp_async_wait() {
  emulator::cp_async_wait(kUnderWay);
}

inline int cluster_rank() { return emulator::my_cta().rank; }
inline void cluster_sync() { emulator::cluster_sync(); }
inline uint32_t mapped(uint32_t address, int rank) { return emulator::mapped(address, rank); }
inline void mbarrier_init(uint32_t bar, int arrivals) { emulator::mbarrier_init(bar, arrivals); }
inline void mbarrier_fence_init() {}
inline void mbarrier_expect(uint32_t bar, uint32_t bytes) { emulator::mbarrier_expect(bar, bytes); }
inline void mbarrier_arrive(uint32_t bar) { emulator::mbarrier_arrive(bar); }
inline void mbarrier_arrive_mapped(uint32_t bar) { emulator::mbarrier_arrive(bar); }
inline void mbarrier_wait(uint32_t bar, uint32_t parity) { emulator::mbarrier_wait(bar, parity); }
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t bar, int column, int row) {
  emulator::tma_load(to, *map, bar, column, row, static_cast<uint16_t>(1 << cluster_rank()));
}
inline void tma_load_multicast(uint32_t to, const TensorMap* map, uint32_t bar, int column, int row, uint16_t mask) {
  emulator::tma_load(to, *map, bar, column, row, mask);
}
template <int kRegisters>
inline void give_registers() {}
template <int kRegisters>
inline void take_registers() {}
inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int kUnderWay>
inline void wgmma_wait() {
  emulator::wgmma_wait(kUnderWay);
}
template <int kN, bool kASigned, bool kWSigned>
inline void wgmma(int32_t (&d)[kN / 2], uint64_t a, uint64_t w, bool accumulate) {
  emulator::wgmma(kN, kASigned, kWSigned, d, a, w, accumulate);
}

}  // namespace qk::ptx
#endif
