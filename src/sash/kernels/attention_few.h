// At most one tile of query rows, as in decoding, with AMX: what counts then is to read keys and values as fast as memory
// gives them. A group of keys is read from end to end, and then its values; the other of the two, or the keys of the group
// after, are asked for meanwhile, from four places side by side, since a core follows a run of lines ahead of time within
// a page only. What has been read is laid out for the tiles by blocks, in memory that stays in the first-level cache: a
// tile that waits for its lines holds up all that follows, while copying asks for many at once.
//
// Keys need not be transposed: tiles hold them in rows and queries in columns, and give the scores' transpose, to the same bits.
#pragma once

#include "attention_gather.h"
#include "attention_products.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

// Asks for a stretch of keys or of values, by four runs of lines in turn.
class KeysAhead {
 public:
  KeysAhead() = default;
  // Positions `first` to before `stop`, of values or of keys, in `n_calls` calls.
  KeysAhead(const AttentionTask& task, bool annex, bool values, int64_t first, int64_t stop, int64_t n_calls) {
    const int64_t part = (stop - first + kRuns - 1) / kRuns;
    for (int64_t i = 0; i < kRuns; ++i) {
      const int64_t from = first + i * part;
      if (from < stop) left_ = most(left_, find(task, annex, values, from, least(stop, from + part), at_[i]));
    }
    pace_ = (left_ * kWhole + n_calls - 1) / n_calls;
  }

  // All at once.
  void rush() {
    for (; left_ > 0; --left_) one_line();
  }

  // Its share of lines. Many at once would have to wait for each other, and all else for them.
  SASH_INLINE void operator()() {
    for (due_ += pace_; due_ >= kWhole && left_ > 0; due_ -= kWhole, --left_) one_line();
  }

 private:
  static constexpr int64_t kRuns = 4, kWhole = 256;

  SASH_INLINE void one_line() {
    for (int64_t i = 0; i < kRuns; ++i) {
      __builtin_prefetch(at_[i], 0, 2);
      at_[i] += 64;
    }
  }

  // Where a part begins, and its lines.
  static int64_t find(const AttentionTask& task, bool annex, bool values, int64_t first, int64_t stop, const char*& at) {
    for (int64_t i = 0; i < task.n_runs; ++i) {
      const KeyRun& run = task.runs[i];
      const int64_t from = first - run.first_position, count = least(stop - run.first_position, run.count) - from;
      if ((run.sight == Sight::annex) != annex || from < 0 || count <= 0) continue;
      at = static_cast<const char*>(values ? run.values : run.keys) + from * run.stride;
      const float* const scales = values ? run.value_scales : run.key_scales;
      for (int64_t key = from; scales != nullptr && key < from + count; key += 16) __builtin_prefetch(scales + key, 0, 2);
      return (count * run.stride + 63) / 64;
    }
    return 0;
  }

  const char* at_[kRuns] = {kZeroRow, kZeroRow, kZeroRow, kZeroRow};
  int64_t left_ = 0, pace_ = 0, due_ = 0;
};

class FewRows {
 public:
  FewRows(const AttentionTask& task, Scratch& scratch) : task_(task), scratch_(scratch) {}

  // Takes over the queries from scratch.q, [step][16 rows][32], as [step][16 dim pairs][16 rows][2].
  void load_queries() {
    for (int64_t step = 0; step < scratch_.steps; ++step) {
      const char* rows[16];
      for (int row = 0; row < 16; ++row) rows[row] = reinterpret_cast<const char*>(scratch_.q + step * 512 + row * 32);
      __m512i pairs[16];
      for (int quarter = 0; quarter < 4; ++quarter) transpose_words(rows, 16 * quarter, pairs + 4 * quarter);
      std::memcpy(scratch_.q + step * 512, pairs, sizeof pairs);
    }
  }

  // Asks for the keys of a sweep's first group.
  void begin(bool annex, int64_t first, int64_t stop) const { KeysAhead(task_, annex, false, first, stop, 1).rush(); }

  // Meets blocks `from` to before `to` of the group at `base`; `find(block, rows)` tells where one lies, `meets(item)` notes what
  // its rows see of it. After them come keys up to before `next`.
  template <class Find, class Meets>
  void meet_group(Item item, int64_t base, int64_t from, int64_t to, int64_t next, Find&& find, Meets&& meets) {
    const int64_t first = base + from * kKeyBlock, stop = base + to * kKeyBlock;
    ahead_ = KeysAhead(task_, item.annex, true, first, stop, (to - from) * scratch_.steps * kParts);
    load_query_tiles();
    Item before;
    for (int64_t block = from; block < to; ++block) {
      item.block = block;
      item.base = base + block * kKeyBlock;
      lie(find, block);
      meets(item);
      for (int64_t step = 0; step < scratch_.steps; ++step) {
        copy_keys(block, step);
        if (step > 0 || block > from) multiply(step > 0 ? block : block - 1, step > 0 ? step - 1 : scratch_.steps - 1);
      }
      if (block > from) weigh(before);
      before = item;
    }
    multiply(to - 1, scratch_.steps - 1);
    weigh(before);
    ahead_ = KeysAhead(task_, item.annex, false, stop, next, (scratch_.cols + 1) / 2 * (to - from) * kParts);
    correct_sums(scratch_, 0);
    for (int64_t col = 0; col < scratch_.cols; col += 2)
      col + 1 < scratch_.cols ? add_values<2>(col, from, to) : add_values<1>(col, from, to);
  }

 private:
  static constexpr int64_t kHeldSteps = 4;  // Of queries, in tiles 4 to 7.
  static constexpr int64_t kParts = 8;      // Of copying a block; after each some lines are asked for.

  struct Place {
    const char *keys, *values;
    int64_t stride;
    bool int8;
  };

  // While tiles read one, the next is copied to the other.
  element* key_copy(int64_t block, int64_t step) const {
    return scratch_.copies + (block * scratch_.steps + step) % 2 * 1024;
  }
  element* value_copy(int64_t block) const { return scratch_.copies + block % 2 * 1024; }
  float* score_tiles(int64_t block) const { return scratch_.scores[1] + block % 2 * 512; }

  void load_query_tiles() const {
    unrolled<kHeldSteps>([&](auto i) {
      if (i < scratch_.steps) tile_load<4 + i>(scratch_.q + i * 512);
    });
  }

  // Transposed scores of 32 keys and 16 queries, a step of their dimensions at a time.
  void multiply(int64_t block, int64_t step) const {
    const element* const keys = key_copy(block, step);
    if (step == 0) {
      tile_zero<0>();
      tile_zero<1>();
    }
    tile_load<2>(keys);
    tile_load<3>(keys + 512);
    if (scratch_.steps > kHeldSteps) {
      tile_load<4>(scratch_.q + step * 512);
      dot<4>();
    } else {
      switch (step) {
        case 0: dot<4>(); break;
        case 1: dot<5>(); break;
        case 2: dot<6>(); break;
        default: dot<7>();
      }
    }
    if (step < scratch_.steps - 1) return;
    tile_store<0>(score_tiles(block));
    tile_store<1>(score_tiles(block) + 256);
  }
  template <int query>
  static void dot() {
    tile_dot_bf16<0, 2, query>();
    tile_dot_bf16<1, 3, query>();
  }

  void weigh(const Item& item) {
    const float* const from = score_tiles(item.block);
    for (int64_t half = 0; half < 2; ++half) {
      const char* keys[16];
      for (int key = 0; key < 16; ++key) keys[key] = reinterpret_cast<const char*>(from + (half * 16 + key) * 16);
      for (int64_t row = 0; row < item.n_rows; row += 4) {
        __m512i rows[4];
        transpose_words(keys, row * 4, rows);
        for (int i = 0; i < 4; ++i) _mm512_storeu_si512(scratch_.scores[0] + (row + i) * kKeyBlock + half * 16, rows[i]);
      }
    }
    Softmax(scratch_, item, scratch_.scores[0]).finish();
  }

  // Notes where a block lies. Rows from several places are copied to one.
  template <class Find>
  void lie(Find&& find, int64_t block) {
    BlockRows rows;
    find(block, rows);
    Place& place = places_[block];
    place = {rows.keys[0], rows.values[0], rows.stride, rows.int8};
    if (rows.stride > 0) return;
    const int64_t bytes = scratch_.head_dim * (rows.int8 ? 1 : 2);
    char* const keys = reinterpret_cast<char*>(scratch_.k_block(block));
    char* const values = reinterpret_cast<char*>(scratch_.v + block * kKeyBlock * scratch_.head_dim);
    for (int64_t j = 0; j < kKeyBlock; ++j)
      for (int64_t at = 0; at < bytes; at += 64) {
        const __mmask64 inside = bytes - at < 64 ? (uint64_t{1} << (bytes - at)) - 1 : ~uint64_t{0};
        _mm512_mask_storeu_epi8(keys + j * bytes + at, inside, _mm512_maskz_loadu_epi8(inside, rows.keys[j] + at));
        _mm512_mask_storeu_epi8(values + j * bytes + at, inside, _mm512_maskz_loadu_epi8(inside, rows.values[j] + at));
      }
    place = {keys, values, bytes, rows.int8};
  }

  // 32 dimensions of a block's keys, as bfloat16.
  void copy_keys(int64_t block, int64_t step) {
    const Place& place = places_[block];
    element* const to = key_copy(block, step);
    if (scratch_.head_dim - step * 32 < 32)
      place.int8 ? copy_keys<true, true>(place, step, to) : copy_keys<false, true>(place, step, to);
    else
      place.int8 ? copy_keys<true, false>(place, step, to) : copy_keys<false, false>(place, step, to);
  }
  template <bool int8, bool half>
  void copy_keys(const Place& place, int64_t step, element* to) {
    constexpr __mmask32 inside = half ? 0xffff : 0xffffffff;
    const char* from = place.keys + step * (int8 ? 32 : 64);
    for (int64_t key = 0; key < kKeyBlock; ++key, from += place.stride) {
      if (key % (kKeyBlock / kParts) == 0) ahead_();
      __m512i wide;
      if (int8) {
        const __m256i narrow = _mm256_maskz_loadu_epi8(inside, from);
        const auto floats = [](__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); };
        wide = (__m512i)_mm512_cvtne2ps_pbh(floats(_mm256_extracti128_si256(narrow, 1)),
                                            floats(_mm256_castsi256_si128(narrow)));
      } else {
        wide = half ? _mm512_maskz_loadu_epi16(inside, from) : _mm512_loadu_si512(from);
      }
      _mm512_store_si512(to + key * 32, wide);
    }
  }

  // o += weights v for columns of tiles `col` to before col + n.
  template <int n>
  void add_values(int64_t col, int64_t from, int64_t to) {
    float* const o = scratch_.o + col * 256;
    unrolled<n>([&](auto i) { tile_load<i>(o + i * 256); });
    for (int64_t block = from; block <= to; ++block) {
      if (block < to) {
        const Place& place = places_[block];
        place.int8 ? gather<n, true>(place, col, value_copy(block)) : gather<n, false>(place, col, value_copy(block));
      }
      if (block == from) continue;
      tile_load<4>(scratch_.weights_row(block - 1, 0));
      unrolled<n>([&](auto i) {
        tile_load<5 + i>(value_copy(block - 1) + i * 512);
        tile_dot_bf16<i, 4, 5 + i>();
      });
    }
    unrolled<n>([&](auto i) { tile_store<i>(o + i * 256); });
  }

  template <int n, bool int8>
  void gather(const Place& place, int64_t col, element* to) {
    const char *first = place.values, *second = first + 16 * place.stride;
    for (int64_t i = 0; i < 16; ++i, first += place.stride, second += place.stride) {
      if (i % (16 / kParts) == 0) ahead_();
      unrolled<n>([&](auto j) { _mm512_store_si512(to + j * 512 + i * 32, pair_values<int8>(first, second, col + j)); });
    }
  }

  const AttentionTask& task_;
  Scratch& scratch_;
  KeysAhead ahead_;
  Place places_[kBlocks];
};

}  // namespace sash::SASH_ISA

#endif
