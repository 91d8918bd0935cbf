// Hammers the pool from several threads, with nested calls and forks: run under ThreadSanitizer by test_sanitizers.py.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "../csrc/cpu/threads.h"

namespace {

struct Work {
  std::vector<long> cells;  // one a task: plain memory, so that a missing synchronisation is a race
  std::atomic<int> nested{0};
};

void task(void* context, int index) {
  Work& work = *static_cast<Work*>(context);
  for (int i = 0; i < 200; ++i) work.cells[size_t(index)] += i;
  if (index == 1) qk::parallel(2, [](void* c, int) { ++static_cast<Work*>(c)->nested; }, context);
}

bool hammer(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    Work work;
    const int tasks = 1 + round % 5;
    work.cells.assign(size_t(tasks), 0);
    qk::parallel(tasks, task, &work);
    for (const long cell : work.cells)
      if (cell != 199 * 200 / 2) return false;
    if (work.nested != (tasks > 1 ? 2 : 0)) return false;
  }
  return true;
}

bool hammer_in_child() {
  const pid_t child = fork();
  if (child == 0) _exit(hammer(50) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

}  // namespace

int main(int argc, char**) {
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&] { failures += !hammer(300); });
  for (auto& thread : threads) thread.join();
  // ThreadSanitizer cannot follow a fork of a process with threads: an argument asks for that part, without it.
  if (argc > 1)
    for (int i = 0; i < 5; ++i) failures += !hammer_in_child() + !hammer(50);
  std::printf(failures ? "FAILED\n" : "all tasks ran\n");
  return failures != 0;
}
