// How weights are shared out where few rows meet them, and how a thread that waits asks for those it will read next.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "linear.h"
#include "pool.h"

namespace sash {

// Weights that a thread claims at once: long enough to be streamed, short enough for all to end together.
constexpr int64_t kClaimBytes = 128 << 10;

class Shares {
 public:
  // What is a thread's own: tiles [first, end), of which the runs take `run` each; what is left comes after them.
  struct Own {
    int64_t first, run, end;
  };

  // `whole` tiles stay together: 2 of a gated pair.
  Shares(const Linear& linear, int64_t whole, int64_t n_threads)
      : whole_(whole), n_threads_(n_threads), tiles_(linear.tiles()),
        step_(std::max<int64_t>(1, kClaimBytes / (kRuns * whole * linear.tile_bytes())) * whole) {
    for (int64_t thread = 0; thread < n_threads; ++thread) steps_ = std::max(steps_, ceil_div(of(thread).run, step_));
  }

  Own of(int64_t thread) const {
    const int64_t first = cut(thread), end = cut(thread + 1);
    return {first, (end - first) / kRuns / whole_ * whole_, end};
  }

  // Units of each thread: steps along its runs, and what is left.
  int64_t units() const { return steps_ + 1; }

  // Calls `runs(tile, count, apart)` or, for what is left, `rest(first, last)`.
  template <class Runs, class Rest>
  void unit(int64_t index, Runs&& runs, Rest&& rest) const {
    const Own own = of(index / units());
    const int64_t step = index % units(), from = step * step_;
    if (step == steps_) {
      if (own.first + kRuns * own.run < own.end) rest(own.first + kRuns * own.run, own.end);
    } else if (from < own.run) {
      runs(own.first + from, std::min(step_, own.run - from), own.run);
    }
  }

 private:
  int64_t cut(int64_t thread) const {
    return std::min(ceil_div(tiles_, whole_) * thread / n_threads_ * whole_, tiles_);
  }

  int64_t whole_, n_threads_, tiles_, step_, steps_ = 0;
};

// The first weights that a thread will read of some products. Memory would have nothing to do while threads wait for each
// other, or make their row ready.
class Ahead {
 public:
  struct Coming {
    const Linear* linear;
    int64_t whole;
  };

  Ahead() = default;
  Ahead(const Team& team, std::initializer_list<Coming> products) {
    for (const Coming& product : products)
      if (product.linear != nullptr) add(*product.linear, Shares(*product.linear, product.whole, team.size()).of(team.index()));
  }

  // All threads meet.
  void meet(Team& team) {
    team.barrier([this] { return ask(); });
    for (int times = 0; times < kAtOnce; ++times) ask();
  }

  // Asks for a few lines; whether there were any left.
  bool ask() {
    for (; product_ < n_products_; ++product_, turn_ = 0)
      for (int tried = 0; tried < kStretches; ++tried) {
        Stretch& stretch = stretches_[product_][turn_++ % kStretches];
        if (stretch.at >= stretch.end) continue;
        for (int line = 0; line < stretch.lines; ++line, stretch.at += 64) __builtin_prefetch(stretch.at, 0, 2);
        return true;
      }
    return false;
  }

 private:
  static constexpr int kProducts = 2, kStretches = 3 * kRuns;
  static constexpr int kAtOnce = 16;              // Calls of `ask` that are worth it where nobody waits.
  static constexpr int64_t kMost = 64 << 10;      // Bytes of a run: all of them fit the second-level cache.

  struct Stretch {
    const char *at = nullptr, *end = nullptr;
    int lines = 0;
  };

  void add(const Linear& linear, const Shares::Own& own) {
    if (n_products_ == kProducts) return;
    Stretch* const to = stretches_[n_products_++];
    const int64_t scales = linear.kind != Kind::int4 ? 0 : linear.groups() * kTile * (linear.multiplier != nullptr ? 1 : 2);
    const void* const by_group = linear.multiplier != nullptr ? static_cast<const void*>(linear.multiplier) : linear.scale4;
    for (int64_t run = 0; run < kRuns; ++run) {
      const int64_t tile = own.first + run * own.run;
      to[3 * run] = stretch(linear.data, linear.tile_bytes(), tile, own.run, 8);
      if (scales == 0) continue;
      to[3 * run + 1] = stretch(by_group, scales, tile, own.run, 1);
      if (linear.minimum != nullptr) to[3 * run + 2] = stretch(linear.minimum, scales, tile, own.run, 1);
    }
  }

  static Stretch stretch(const void* from, int64_t tile_bytes, int64_t tile, int64_t count, int lines) {
    const char* const at = static_cast<const char*>(from) + tile * tile_bytes;
    return {at, at + std::min(count * tile_bytes, kMost * lines / 8), lines};
  }

  Stretch stretches_[kProducts][kStretches];
  int n_products_ = 0, product_ = 0, turn_ = 0;
};

}  // namespace sash
