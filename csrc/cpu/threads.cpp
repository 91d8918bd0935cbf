#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <new>
#include <thread>

namespace qk {
namespace {

constexpr int kMaxThreads = 256;
// A network alternates layers that are worth two threads and layers that are not; a worker that falls asleep between them
// is woken again and again. EfficientNet-Lite0 with two threads, µs, one thread 2,550: workers that spin for 19 µs, 20 µs of
// work a thread 2,770; 200 µs and 20 2,410; 200 µs and 5 1,930, and 1,790 when epilogues count as work; 100 µs 1,700;
// 500 µs 1,930. Why not a threshold of 3 µs: 1,750. NumPy's products between ours lose nothing by it (0.95 to 1.05).
constexpr int kSpins = 64;  // pauses between two looks at the clock, 0.6 to 3 µs by the CPU
constexpr auto kAwake = std::chrono::microseconds(100);  // longer than a layer that needs one thread only
constexpr double kSpinningUs = 5, kSleepingUs = 20;      // work that is worth a thread which waits, or sleeps
constexpr size_t kKeepBytes = 64u << 20;  // of scratch, a thread: a plain 4096×4096 matrix packed on every call fits
constexpr size_t kHugePage = 2u << 20;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

using Clock = std::chrono::steady_clock;

std::atomic<int> awake{0};  // workers that work, or spin for the next task

// A thread that runs one task at a time for whoever holds the pool. A task that it has not begun when its giver has
// nothing else to do is taken back: a sleeping thread, or one whose core is somebody else's just now, costs no more than
// the call that wakes it.
class Worker {
 public:
  void start() {
    std::thread([this] { loop(); }).detach();
  }

  void give(Task task, void* context, int index) {
    task_ = task;
    context_ = context;
    index_ = index;
    state_.store(kGiven);  // sequentially consistent with asleep_: one of the two sides sees the other
    const bool asleep = asleep_.load();
    if (asleep || cpu_.load(std::memory_order_relaxed) == sched_getcpu()) elsewhere();
    if (asleep) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  void wait() {
    State given = kGiven;
    if (state_.compare_exchange_strong(given, kIdle)) return task_(context_, index_);
    if (comes(kIdle, kAwake, [] {})) return;
    while (state_.load(std::memory_order_acquire) != kIdle) sched_yield();
  }

 private:
  enum State { kIdle, kGiven, kBegun };

  // Whether the state does within the time.
  template <class Between>
  bool comes(State wanted, Clock::duration within, Between between) {
    const Clock::time_point end = Clock::now() + within;
    do {
      for (int spin = 0; spin < kSpins; ++spin) {
        if (state_.load(std::memory_order_acquire) == wanted) return true;
        pause_cpu();
      }
      between();
    } while (Clock::now() < end);
    return false;
  }

  // Any CPU but the caller's. Linux puts a thread that is woken on its waker's CPU where the others have been idle for
  // long enough, and there it waits for a time slice, for milliseconds, while the waker works: EfficientNet-Lite0 after
  // 10 idle ms, two threads, 2,560 µs with it and 1,950 so (a loop without pauses: 1,660 either way). Whatever affinity
  // somebody else has given it stays the outer bound.
  void elsewhere() {
    const pid_t thread = thread_.load(std::memory_order_acquire);
    cpu_set_t now, wanted;
    if (!thread || sched_getaffinity(thread, sizeof now, &now) != 0) return;
    if (!CPU_EQUAL(&now, &chosen_)) allowed_ = now;
    wanted = allowed_;
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE) return;
    CPU_CLR(here, &wanted);
    if (CPU_COUNT(&wanted) == 0) return;
    chosen_ = wanted;
    if (!CPU_EQUAL(&now, &wanted)) sched_setaffinity(thread, sizeof wanted, &wanted);
  }

  // Spinning, it lets whoever else wants the CPU have it: another library's threads come right after ours.
  void loop() {
    thread_.store(pid_t(syscall(SYS_gettid)), std::memory_order_release);
    ++awake;
    const auto let_others = [this] {
      sched_yield();
      cpu_.store(sched_getcpu(), std::memory_order_relaxed);
    };
    for (;;) {
      if (!comes(kGiven, kAwake, let_others)) sleep();
      State given = kGiven;
      if (!state_.compare_exchange_strong(given, kBegun)) continue;
      task_(context_, index_);
      state_.store(kIdle, std::memory_order_release);
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true);
    --awake;
    wake_.wait(lock, [this] { return state_.load() == kGiven; });
    ++awake;
    asleep_.store(false);
  }

  std::atomic<State> state_{kIdle};
  std::atomic<bool> asleep_{false};
  std::atomic<pid_t> thread_{0};
  std::atomic<int> cpu_{-1};         // where it spins
  cpu_set_t allowed_, chosen_ = {};  // of the thread; chosen: without its giver's CPU
  std::mutex mutex_;
  std::condition_variable wake_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  int index_ = 0;
};

struct Pool {
  Worker* workers[kMaxThreads] = {};
  int started = 0;

  // False when the system gives no more threads.
  bool ensure(int wanted) {
    try {
      for (; started < wanted; ++started) {
        workers[started] = new Worker;
        workers[started]->start();
      }
      return true;
    } catch (...) {
      return false;
    }
  }
};

// One job at a time. Never destroyed: workers may outlive static destructors.
std::mutex& busy = *new std::mutex;
Pool* pool = nullptr;
std::atomic<int> threads_wanted{0};
std::atomic<const Team*> lent{nullptr};

// While a process forks nobody is in the pool; the child has only the forking thread, so it forgets the workers.
void before_fork() { busy.lock(); }
void after_fork_parent() { busy.unlock(); }
void after_fork_child() {
  pool = nullptr;
  awake = 0;
  lent = nullptr;  // an OpenMP run-time does not survive a fork
  busy.unlock();
}
const int fork_handlers = pthread_atfork(before_fork, after_fork_parent, after_fork_child);

void run_serially(int tasks, Task task, void* context) {
  for (int i = 0; i < tasks; ++i) task(context, i);
}

struct TeamJob {
  const Team& team;
  int tasks;
  Task task;
  void* context;
};

// Of as many members as there happen to be: a nested team has one.
void run_member(void* data) {
  const TeamJob& job = *static_cast<TeamJob*>(data);
  for (int i = job.team.number(); i < job.tasks; i += job.team.size()) job.task(job.context, i);
}

int cgroup_cpus() {
  long long quota = 0, period = 0;
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    const int found = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    if (found == 2 && quota > 0 && period > 0) return int((quota + period - 1) / period);
  }
  return kMaxThreads;
}

struct Buffers {
  void* data[kScratchSlots] = {};
  size_t bytes[kScratchSlots] = {};
  ~Buffers() {
    for (void* buffer : data) free(buffer);
  }
};
thread_local Buffers buffers;

// Of the initial model: no call and no allocation stands behind an access, whatever thread looks. Emulated tiles are
// thread-local too, and too large for it.
#ifndef QK_EMULATE
__attribute__((tls_model("initial-exec")))
#endif
thread_local HostPlace* place = nullptr;

void* take(Arena& arena, ScratchSlot slot, size_t bytes) {
  auto& mine = arena.slots[slot];
  if (bytes <= mine.bytes) return mine.data;
  const size_t size = (bytes + 63) / 64 * 64;
  if (size > arena.left) return nullptr;
  mine.data = arena.at, mine.bytes = size;
  arena.at += size, arena.left -= size;
  return mine.data;
}

void in_pool(int tasks, Task task, void* context) {
  if (tasks <= 1 || tasks > kMaxThreads || !busy.try_lock()) return run_serially(tasks, task, context);
  if (const Team* const team = lent.load()) {
    TeamJob job{*team, tasks, task, context};
    team->run(run_member, &job, unsigned(tasks), 0);
    busy.unlock();
    return;
  }
  if (!pool) pool = new (std::nothrow) Pool;
  if (!pool || !pool->ensure(tasks - 1)) {
    busy.unlock();
    return run_serially(tasks, task, context);
  }
  for (int i = 1; i < tasks; ++i) pool->workers[i - 1]->give(task, context, i);
  task(context, 0);
  for (int i = 1; i < tasks; ++i) pool->workers[i - 1]->wait();
  busy.unlock();
}

struct HostedTask {
  const Host& host;
  Task task;
  void* context;
};

void run_hosted(void* context, int index) {
  const HostedTask& t = *static_cast<HostedTask*>(context);
  HostPlace mine = {&t.host, {}};
  if (t.host.memory && index >= 0 && index < t.host.tasks) {
    mine.arena.at = t.host.memory + t.host.call_bytes + size_t(index) * t.host.task_bytes;
    mine.arena.left = t.host.task_bytes;
  }
  HostPlace* const before = set_host(&mine);
  t.task(t.context, index);
  set_host(before);
}

void on_host(const Host& host, int tasks, Task task, void* context) {
  HostedTask hosted{host, task, context};
  if (tasks > 1 && host.own_threads) in_pool(tasks, run_hosted, &hosted);
  else if (tasks > 1 && host.parallel_for) host.parallel_for(host.pool, tasks, run_hosted, &hosted);
  else run_serially(tasks, run_hosted, &hosted);
}

}  // namespace

HostPlace* set_host(HostPlace* next) {
  HostPlace* const before = place;
  place = next;
  return before;
}

int available_cpus() {
  cpu_set_t set;
  int n = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  const int limit = cgroup_cpus();
  if (limit < n) n = limit;
  return n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n;
}

int num_threads() {
  int n = threads_wanted.load(std::memory_order_relaxed);
  if (n == 0) {
    n = available_cpus();
    threads_wanted.store(n, std::memory_order_relaxed);
  }
  return n;
}

void set_num_threads(int n) {
  threads_wanted.store(n <= 0 ? available_cpus() : n > kMaxThreads ? kMaxThreads : n, std::memory_order_relaxed);
}

void lend_team(const Team* team) { lent.store(team); }

int threads_for(double us, int threads) {
  const bool ours = !place && !lent.load(std::memory_order_relaxed);
  const double most = us / (ours && awake.load(std::memory_order_relaxed) > 0 ? kSpinningUs : kSleepingUs);
  return most < 2 ? 1 : most < threads ? int(most) : threads;
}

void parallel(int tasks, Task task, void* context) {
  (void)fork_handlers;
  if (place) on_host(*place->host, tasks, task, context);
  else in_pool(tasks, task, context);
}

void* thread_scratch(ScratchSlot slot, size_t bytes) {
  if (place && !place->host->own_scratch) return take(place->arena, slot, bytes);
  Buffers& mine = buffers;
  if (bytes > mine.bytes[slot]) {
    free(mine.data[slot]);
    const size_t page = bytes >= 2 * kHugePage ? kHugePage : 4096;
    const size_t size = (bytes + bytes / 4 + page - 1) / page * page;
    mine.data[slot] = aligned_alloc(page, size);
    mine.bytes[slot] = mine.data[slot] ? size : 0;
    if (mine.data[slot] && page == kHugePage) madvise(mine.data[slot], size, MADV_HUGEPAGE);  // a hint
  }
  return mine.data[slot];
}

void trim_thread_scratch() {
  if (place && !place->host->own_scratch) return;
  Buffers& mine = buffers;
  for (int slot = 0; slot < kScratchSlots; ++slot)
    if (mine.bytes[slot] > kKeepBytes) {
      free(mine.data[slot]);
      mine.data[slot] = nullptr;
      mine.bytes[slot] = 0;
    }
}

}  // namespace qk
