// One pool of threads for all kernels. Work inside a region is claimed dynamically; between regions workers spin for a
// few tens of microseconds, since the next layer is usually that close, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sash {

class Pool;

// What one thread of a region sees of it.
class Team {
 public:
  Team(Pool& pool, int index) : pool_(pool), index_(index) {}

  int index() const { return index_; }
  int size() const;

  // All threads meet here; what any wrote before is seen by all after.
  void barrier();

  // Calls `body(unit)` for every unit in 0..count-1, each on one thread, and meets at the end.
  template <class Body>
  void share(int64_t count, Body&& body) {
    share_open(count, body);
    barrier();
  }

  // The same without meeting: the next `share` or barrier must not depend on this one's results.
  template <class Body>
  void share_open(int64_t count, Body&& body);

 private:
  Pool& pool_;
  int index_;
  int round_ = 0;
};

class Pool {
 public:
  // The pool that all kernels share; made on first use.
  static Pool& shared();

  explicit Pool(int n_threads);
  ~Pool();

  int size() const { return n_threads_; }
  void resize(int n_threads);

  // Runs `body(team)` on every thread, the caller's included, and returns when all are done. One region at a time.
  void run(const std::function<void(Team&)>& body);

 private:
  friend class Team;

  // A counter a `share`, used in turn, so that a thread that is late in one cannot claim units of another.
  static constexpr int kCounters = 4;
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };

  void start();
  void stop();
  void work(int index, uint64_t seen);
  void meet();

  int n_threads_;
  std::vector<std::thread> threads_;
  Counter counters_[kCounters];
  alignas(64) std::atomic<uint64_t> region_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint64_t> phase_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  const std::function<void(Team&)>* body_ = nullptr;
  bool stopping_ = false;
  std::mutex mutex_, caller_;
  std::condition_variable wake_;
};

inline int Team::size() const { return pool_.size(); }
inline void Team::barrier() { pool_.meet(); }

template <class Body>
void Team::share_open(int64_t count, Body&& body) {
  // The counter two rounds ahead is reset by whoever meets this round: everyone has left it by then.
  auto& counter = pool_.counters_[round_ % Pool::kCounters].next;
  pool_.counters_[(round_ + 2) % Pool::kCounters].next.store(0, std::memory_order_relaxed);
  ++round_;
  for (int64_t unit; (unit = counter.fetch_add(1, std::memory_order_relaxed)) < count;) body(unit);
}

}  // namespace sash
