// Attention of query rows over runs of keys, by blocks and with online softmax; see attention.h. Included by sources
// that are compiled once for each instruction set.
//
// A row's result depends on nothing but its query and the keys that it sees: blocks and groups of blocks lie at absolute
// positions and are taken in ascending order (pins first, then an annex, in groups of their own), each by the same operations; and a
// block that a row does not see adds exact zeros. So neither chunks, nor other rows, nor where a ring wraps change a bit.
#pragma once

#include "attention_few.h"
#include "attention_gather.h"
#include "attention_products.h"

namespace sash::SASH_ISA {

inline size_t attention_scratch_bytes(int64_t head_dim) { return Scratch(head_dim, nullptr).bytes; }

// At most attention_max_rows query rows, from `first_row`.
class Unit {
 public:
  Unit(const AttentionTask& task, int64_t first_row, int64_t n_rows, Scratch& scratch)
      : task_(task), scratch_(scratch), first_row_(first_row), n_rows_(n_rows), pipeline_(scratch) {
    for (int64_t row = 0; row < n_rows; ++row) {
      scratch.position[row] = task.position + (first_row + row) / task.per_group;
      scratch.bias[row] = -kUnseen;
    }
    std::memset(scratch.sum, 0, static_cast<size_t>(n_rows) * 64);
    std::memset(scratch.o, 0, static_cast<size_t>(n_pairs()) * kQueryPair * task.head_dim * 4);
  }

  void run() {
    if (task_.n_runs > 0 && task_.runs[0].sight == Sight::pinned) {
      load_queries(task_.q_clamped ? task_.q_clamped : task_.q);
      each_pinned([&](int64_t first, int64_t stop) { sweep(Sight::pinned, first, stop, 0); });
    }
    load_queries(task_.q);
    for (int64_t i = 0; i < task_.n_runs && task_.runs[i].sight != Sight::window; ++i)
      if (task_.runs[i].sight == Sight::annex) sweep(Sight::annex, 0, task_.runs[i].count, 0);
    int64_t from = 0;
    each_pinned([&](int64_t first, int64_t stop) {
      sweep(Sight::window, from, first, task_.window);
      from = stop;
    });
    sweep(Sight::window, from, INT64_MAX, task_.window);
    finish();
  }

 private:
  int64_t n_pairs() const { return (n_rows_ + kQueryPair - 1) / kQueryPair; }

  // Calls `body` with each stretch of pinned positions in turn; runs side by side are one stretch.
  template <class Body>
  void each_pinned(Body&& body) const {
    int64_t first = 0, stop = -1;
    for (int64_t i = 0; i < task_.n_runs && task_.runs[i].sight == Sight::pinned; ++i) {
      const KeyRun& run = task_.runs[i];
      if (run.first_position != stop) {
        if (stop >= 0) body(first, stop);
        first = run.first_position;
      }
      stop = run.first_position + run.count;
    }
    if (stop >= 0) body(first, stop);
  }

  // Copies the queries into the layout of the products; rows past the last are zeros.
  void load_queries(const uint16_t* q) {
    const int64_t dims = task_.head_dim, k_dims = scratch_.k_dims;
    std::memset(scratch_.q, 0, static_cast<size_t>(n_pairs() * kQueryPair * k_dims) * sizeof(element));
    for (int64_t row = 0; row < n_rows_; ++row) {
      const uint16_t* const from = q + (first_row_ + row) * dims;
#if defined(__AMX_TILE__)
      element* const to = scratch_.q + row / 16 * 16 * k_dims + row % 16 * 32;
      for (int64_t dim = 0; dim < dims; dim += 16) std::memcpy(to + dim / 32 * 512 + dim % 32, from + dim, 32);
#else
      for (int64_t dim = 0; dim < dims; ++dim) scratch_.q[row * dims + dim] = from_bf16(from[dim]);
#endif
    }
#if defined(__AMX_TILE__)
    if (n_rows_ <= 16) FewRows(task_, scratch_).load_queries();
#endif
  }

  // All rows over all keys from `first` to before `stop` that some row sees.
  void sweep(Sight sight, int64_t first, int64_t stop, int64_t window) {
    const int64_t oldest = window ? most(first, scratch_.position[0] - window + 1) : first;
    Item item;
    item.annex = sight == Sight::annex;
    const int64_t end = least(stop, item.sees(scratch_.position[n_rows_ - 1]) + 1);
    if (oldest >= end) return;
    item.first = first, item.stop = stop, item.window = window;
#if defined(__AMX_TILE__)
    FewRows few(task_, scratch_);
    const auto group_end = [&](int64_t base) { return least(base + kKeyGroup, end); };
    if (n_rows_ <= 16) few.begin(item.annex, oldest, group_end(oldest / kKeyGroup * kKeyGroup));
#endif
    for (int64_t base = oldest / kKeyGroup * kKeyGroup; base < end; base += kKeyGroup) {
      const int64_t from = most(oldest - base, 0) / kKeyBlock;
      const int64_t to = least(end - base + kKeyBlock - 1, kKeyGroup) / kKeyBlock;
#if defined(__AMX_TILE__)
      if (n_rows_ <= 16) {
        item.n_rows = n_rows_;
        few.meet_group(
            item, base, from, to, group_end(base + kKeyGroup),
            [&](int64_t block, BlockRows& rows) { find(sight, base + block * kKeyBlock, block, rows); },
            [&](Item& met) { meets(met); });
        continue;
      }
#endif
      for (int64_t block = from; block < to; ++block) gather(sight, base + block * kKeyBlock, block);
      for (item.pair = 0; item.pair < n_pairs(); ++item.pair) meet_group(item, base, from, to);
      pipeline_.flush();
    }
  }

  // One pair of query tiles over what it sees of blocks `from` to before `to` of a group.
  void meet_group(Item& item, int64_t base, int64_t from, int64_t to) {
    item.n_rows = least(kQueryPair, n_rows_ - item.pair * kQueryPair);
    const auto meets = [&](int64_t block) {
      item.block = block;
      item.base = base + block * kKeyBlock;
      return this->meets(item);
    };
    while (from < to && !meets(from)) ++from;
    while (from < to && !meets(to - 1)) --to;
    for (int64_t block = from; block < to; ++block) {
      meets(block);
      item.count = block + 1 == to ? to - from : 0;
      pipeline_.push(item);
    }
  }

  void gather(Sight sight, int64_t base, int64_t block) {
    BlockRows rows;
    find(sight, base, block, rows);
    gather_keys(scratch_, rows, scratch_.k_block(block));
    gather_values(scratch_, rows, block);
  }

  void find(Sight sight, int64_t base, int64_t block, BlockRows& rows) {
    float* const key_factor = scratch_.key_factor + block * kKeyBlock;
    find_rows(task_, base, sight, key_factor, scratch_.value_factor + block * kKeyBlock, scratch_.widened, rows);
    // Weights are powers of two.
    for (int64_t i = 0; i < kKeyBlock; ++i) key_factor[i] *= task_.scale * 1.44269504088896341f;
    scratch_.scaled[block] = rows.scaled;
    scratch_.biased[block] = false;
    if (sight == Sight::annex) find_biases(base, block);
  }

  void find_biases(int64_t base, int64_t block) {
    float* const bias = scratch_.key_bias + block * kKeyBlock;
    for (int64_t i = 0; i < task_.n_runs; ++i) {
      const KeyRun& run = task_.runs[i];
      if (run.log_weights == nullptr) continue;
      scratch_.biased[block] = true;
      for (int64_t j = 0; j < kKeyBlock; ++j)
        bias[j] = base + j < run.count ? run.log_weights[base + j] * 1.44269504088896341f : 0.0f;
    }
  }

  // Whether some row of the pair sees some of the block, and notes whether all see all.
  bool meets(Item& item) const {
    const int64_t* const position = scratch_.position + item.pair * kQueryPair;
    const int64_t earliest = item.sees(position[0]), latest = item.sees(position[item.n_rows - 1]);
    const int64_t end = item.base + kKeyBlock;
    const auto oldest = [&](int64_t p) { return item.window ? most(item.first, p - item.window + 1) : item.first; };
    item.masked = end > least(earliest + 1, item.stop) || item.base < oldest(latest) || scratch_.biased[item.block];
    return item.base < least(latest + 1, item.stop) && end > oldest(earliest);
  }

  // Divides by the weights' sums.
  void finish() {
    for (int64_t row = 0; row < n_rows_; ++row) {
      const int64_t at = first_row_ + row;
      float* const out = task_.out + at / task_.per_group * task_.out_stride + at % task_.per_group * task_.head_dim;
      const float sum = sum16(load16(scratch_.sum + row * 16));
      const float* const o = scratch_.o_tile(row / 16) + row % 16 * 16;
      for (int64_t col = 0; col < scratch_.cols; ++col)
        store16(out + col * 16, load16(o + col * 256) / (sum == 0 ? 1.0f : sum));
    }
  }

  const AttentionTask& task_;
  Scratch& scratch_;
  const int64_t first_row_, n_rows_;
  Pipeline pipeline_;
};

// Query rows first_row to before last_row of a task. `memory` has attention_scratch_bytes and is aligned to 64; one
// thread uses it at a time. With AMX the thread has called tile_config() before.
inline void attend_rows(const AttentionTask& task, int64_t first_row, int64_t last_row, void* memory) {
  Scratch scratch(task.head_dim, memory);
  const int64_t at_once = attention_max_rows(task.head_dim);
  for (int64_t row = first_row; row < last_row; row += at_once)
    Unit(task, row, least(at_once, last_row - row), scratch).run();
}

}  // namespace sash::SASH_ISA
