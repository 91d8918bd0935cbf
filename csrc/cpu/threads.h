// Our own small thread pool: no OpenMP, so that no second OpenMP run-time ends up in the process.
//
// A job is split into as many tasks as threads, once; task i runs on thread i, task 0 on the caller. A call that finds
// the pool at work (another Python thread, a nested call) runs its tasks one after the other on its own thread: results
// never depend on the number of threads. After a fork the child starts a pool of its own when it first needs one.
#pragma once
#include <stddef.h>

namespace qk {

int available_cpus();         // of this process: affinity mask and cgroup quota
int num_threads();            // what a large product uses
void set_num_threads(int n);  // n ≤ 0: available_cpus()

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
  kScratchSlots
};
void* thread_scratch(ScratchSlot slot, size_t bytes);
void trim_thread_scratch();  // gives large buffers back

}  // namespace qk
