// Our own small thread pool: no OpenMP, so that no second OpenMP run-time ends up in the process.
//
// A job is split into as many tasks as threads, once; task i runs on thread i, task 0 on the caller. A call that finds
// the pool at work (another Python thread, a nested call) runs its tasks one after the other on its own thread: results
// never depend on the number of threads. After a fork the child starts a pool of its own when it first needs one.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qk {

int available_cpus();         // of this process: affinity mask and cgroup quota
int num_threads();            // what a large product uses
void set_num_threads(int n);  // n ≤ 0: available_cpus()

// How many of `threads` so much work is worth. One that still spins after its last task begins in a fraction of a
// microsecond; waking one that sleeps costs the caller 10 µs, and it begins 20 to 40 µs later.
int threads_for(double us, int threads);

using Task = void (*)(void* context, int index);
void parallel(int tasks, Task task, void* context);

// Another library's threads in place of the pool's, for the whole process: those of an OpenMP run-time that is there
// already. Its threads spin for milliseconds after their work, and would keep ours from the CPUs. Null: ours again.
struct Team {
  void (*run)(void (*member)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*number)();                                                                   // omp_get_thread_num
  int (*size)();                                                                     // omp_get_num_threads
};
void lend_team(const Team* team);  // kept for ever

// The calling thread's own buffers, 64-byte aligned, kept between calls. Null when there is no memory.
enum ScratchSlot {
  kBlockScratch,
  kWeightScratch,
  kLateScratch,
  kCodesScratch,
  kColumnScratch,
  kImageScratch,
  kZeroScratch,
  kEpilogueScratch,
  kStaticScratch,
  kScratchSlots
};
void* thread_scratch(ScratchSlot slot, size_t bytes);
void trim_thread_scratch();  // gives large buffers back

// ---- an engine's own threads and memory, in place of the above (csrc/capi)

struct Host {
  int tasks;  // no more are asked for
  bool own_threads, own_scratch;
  void (*parallel_for)(void* pool, int tasks, Task task, void* context);  // null: one after the other
  void* pool;
  uint8_t* memory;  // call_bytes of the call, then task_bytes of each task; 64-byte aligned
  size_t call_bytes, task_bytes;
};

struct Arena {  // handed out slot by slot
  uint8_t* at;
  size_t left;
  struct {
    uint8_t* data;
    size_t bytes;
  } slots[kScratchSlots];
};

struct HostPlace {  // of a thread, while it works for a host
  const Host* host;
  Arena arena;
};

HostPlace* set_host(HostPlace* place);  // for the calling thread; the one before

}  // namespace qk
