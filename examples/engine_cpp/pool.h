// The engine's own threads: a pool like any engine has, and the three lines by which qkernels uses it.
#pragma once
#include <qkernels.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  int threads() const { return int(workers_.size()) + 1; }

  // qk_host.parallel_for; the pool is qk_host.pool.
  static void parallel_for(void* pool, int32_t tasks, qk_task task, void* context) {
    static_cast<Pool*>(pool)->run(tasks, task, context);
  }

 private:
  void run(int32_t tasks, qk_task task, void* context) {
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = task, context_ = context, next_ = 0, tasks_ = tasks, done_ = 0;
    wake_.notify_all();
    while (step(lock)) {
    }
    finished_.wait(lock, [this] { return done_ == tasks_; });
    tasks_ = 0;
  }

  // The next task, if there is one; the lock is open while it runs.
  bool step(std::unique_lock<std::mutex>& lock) {
    if (next_ >= tasks_) return false;
    const int32_t index = next_++;
    lock.unlock();
    task_(context_, index);
    lock.lock();
    if (++done_ == tasks_) finished_.notify_one();
    return true;
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
      if (!step(lock)) wake_.wait(lock, [this] { return stop_ || next_ < tasks_; });
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  qk_task task_ = nullptr;
  void* context_ = nullptr;
  int32_t next_ = 0, tasks_ = 0, done_ = 0;
  bool stop_ = false;
};
