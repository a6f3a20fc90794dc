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

// Spins, then gives the core away: whoever it waits for may need it.
template <class Ready>
void wait_until(Ready&& ready) {
  for (int spin = 0; !ready(); ++spin) {
    if (spin < 4000) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

// One for each core, or as many as OMP_NUM_THREADS says, which users know from other libraries.
int usual_threads() {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  const int count = wanted == nullptr ? 0 : std::atoi(wanted);
  return count > 0 ? count : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

constexpr int kSpinsBeforeSleep = 1500;  // About 50 microseconds.

}  // namespace

Pool& Pool::shared() {
  static Pool* pool = new Pool(usual_threads());  // Never ended: threads may outlive main.
  return *pool;
}

Pool::Pool(int n_threads) : n_threads_(std::max(1, n_threads)) { start(); }

Pool::~Pool() { stop(); }

void Pool::start() {
  stopping_ = false;
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
  meet();
}

void Pool::work(int index, uint64_t seen) {
  for (;;) {
    int spins = 0;
    while (region_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep) {
      relax();
      ++spins;
    }
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
    meet();
  }
}

void Pool::meet() {
  if (n_threads_ == 1) return;
  const uint64_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

}  // namespace sash
