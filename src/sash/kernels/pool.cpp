#include "pool.h"

#include <algorithm>
#include <cstdlib>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace sash {

namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One for each core, or as many as OMP_NUM_THREADS says, which users know from other libraries.
int usual_threads() {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  const int count = wanted == nullptr ? 0 : std::atoi(wanted);
  return count > 0 ? count : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Some 150 and 300 microseconds. A worker does not give its core away before it sleeps: whoever took it would keep it for
// milliseconds, where a worker that is woken has it back at once.
constexpr int kRestsBeforeYield = 4000, kRestsBeforeSleep = 8000;

}  // namespace

Pool& Pool::shared() {
  static Pool* pool = new Pool(usual_threads());  // Never ended: threads may outlive main.
  return *pool;
}

Pool::Pool(int n_threads) : n_threads_(std::max(1, n_threads)) { start(); }

Pool::~Pool() { stop(); }

void Pool::start() {
  stopping_ = false;
  counters_ = std::vector<Counter>(static_cast<size_t>(kCounters * n_threads_));
  for (int index = 1; index < n_threads_; ++index) threads_.emplace_back([this, index, seen = region_.load()] { work(index, seen); });
}

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    region_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void Pool::resize(int n_threads) {
  std::lock_guard<std::mutex> one_at_a_time(caller_);
  n_threads = std::max(1, n_threads);
  if (n_threads == n_threads_) return;
  stop();
  n_threads_ = n_threads;
  start();
}

void Pool::run(const std::function<void(Team&)>& body) {
  std::lock_guard<std::mutex> one_at_a_time(caller_);
  for (auto& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
  Team team(*this, 0);
  if (n_threads_ == 1) {
    body(team);
    return;
  }
  body_ = &body;
  region_.fetch_add(1);  // Sequentially consistent: either the worker sees it, or we see the worker asleep.
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  body(team);
  team.barrier();
}

void Pool::work(int index, uint64_t seen) {
  for (;;) {
    for (int times = 0; region_.load(std::memory_order_acquire) == seen && times < kRestsBeforeSleep; ++times) relax();
    if (region_.load() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return region_.load() != seen; });
      sleepers_.fetch_sub(1);
    }
    ++seen;
    if (stopping_) return;
    Team team(*this, index);
    (*body_)(team);
    team.barrier();
  }
}

bool Pool::arrive(uint64_t& phase) {
  phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < n_threads_) return false;
  arrived_.store(0, std::memory_order_relaxed);
  phase_.store(phase + 1, std::memory_order_release);
  return true;
}

void Pool::rest(int times) {
  if (times < kRestsBeforeYield) {
    relax();
  } else {
    std::this_thread::yield();
  }
}

}  // namespace sash
