// One pool of threads for all kernels. Work inside a region is claimed dynamically; between regions workers spin for a
// few hundred microseconds, since the next region is usually that close, and then sleep.
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
  void barrier() {
    barrier([] { return false; });
  }
  // The same; until all have come, `pass_time` is called over and over. It says whether there was anything left to do.
  template <class PassTime>
  void barrier(PassTime&& pass_time);

  // Calls `body(unit)` for every unit in 0..count-1, each on one thread, and meets at the end.
  template <class Body>
  void share(int64_t count, Body&& body) {
    share_open(count, body);
    barrier();
  }

  // The same without meeting: the next `share` or barrier must not depend on this one's results.
  template <class Body>
  void share_open(int64_t count, Body&& body);

  // As `share_open`, with `count` units for each thread: unit `t * count + i` is thread t's, and only who has done all
  // of its own takes those of others. `body` has an idea what comes next, then.
  template <class Body>
  void share_own(int64_t count, Body&& body);

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

  // A counter of each thread for a `share`, used in turn, so that a thread that is late in one cannot claim units of
  // another. Units that are nobody's own are counted by the first.
  static constexpr int kCounters = 4;
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };

  void start();
  void stop();
  void work(int index, uint64_t seen);
  std::atomic<int64_t>& counter(int round, int thread) {
    return counters_[static_cast<size_t>(round % kCounters * n_threads_ + thread)].next;
  }
  // Whether this thread is the last to come, so that nobody need wait; `phase` is that of the meeting.
  bool arrive(uint64_t& phase);
  bool over(uint64_t phase) const { return phase_.load(std::memory_order_acquire) != phase; }
  // Lets the core rest for a moment of waiting, or after many gives it away: whoever it waits for may need it.
  static void rest(int times);

  int n_threads_;
  std::vector<std::thread> threads_;
  std::vector<Counter> counters_;  // [round][thread]
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

template <class PassTime>
void Team::barrier(PassTime&& pass_time) {
  uint64_t phase;
  if (pool_.size() == 1 || pool_.arrive(phase)) return;
  for (int times = 0; !pool_.over(phase);)
    if (!pass_time()) Pool::rest(++times);
}

template <class Body>
void Team::share_open(int64_t count, Body&& body) {
  // The counters two rounds ahead are reset by whoever meets this round: everyone has left it by then.
  auto& counter = pool_.counter(round_, 0);
  pool_.counter(round_ + 2, index_).store(0, std::memory_order_relaxed);
  ++round_;
  for (int64_t unit; (unit = counter.fetch_add(1, std::memory_order_relaxed)) < count;) body(unit);
}

template <class Body>
void Team::share_own(int64_t count, Body&& body) {
  const int n_threads = size(), round = round_++;
  pool_.counter(round + 2, index_).store(0, std::memory_order_relaxed);
  for (int i = 0; i < n_threads; ++i) {
    const int owner = (index_ + i) % n_threads;
    auto& counter = pool_.counter(round, owner);
    for (int64_t unit; (unit = counter.fetch_add(1, std::memory_order_relaxed)) < count;) body(owner * count + unit);
  }
}

}  // namespace sash
