// At most one tile of query rows, as in decoding, with AMX: what counts then is to read keys and values as fast as memory
// gives them. Keys are not transposed but multiplied where they lie: the tiles hold keys in rows and queries in columns,
// and give the scores' transpose, to the same bits.
#pragma once

#include "attention_gather.h"
#include "attention_products.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

constexpr int64_t kKeysAhead = 128;  // How far ahead memory is asked for keys and values.

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

  // Asks for the first keys of a sweep from position `first` on.
  void begin(const Item& item, int64_t first) const {
    for (int64_t at = first; at < first + kKeysAhead; at += kKeyBlock) ask_for(item, at);
  }

  // Makes weights of the block before, while tiles make this one's scores.
  void push(const Item& item, const BlockRows& rows) {
    const char* keys = rows.keys[0];
    int64_t stride = rows.stride;
    ask_for(item, item.base + kKeysAhead);
    if (!rows.whole || rows.scaled || scratch_.head_dim % 32 != 0) {
      copy_keys(rows);
      keys = reinterpret_cast<const char*>(scratch_.k);
      stride = scratch_.k_dims * 2;
    }
    gather_values(scratch_, rows, item.block);
    multiply(keys, stride);
    weigh();
    turn_scores(item.n_rows);
    item_ = item;
  }

  // Weights of the last block pushed.
  void weigh() {
    if (item_.n_rows > 0) Softmax(scratch_, item_, scratch_.scores[0]).finish();
    item_.n_rows = 0;
  }

 private:
  // Transposed scores of 32 keys and 16 queries.
  void multiply(const char* keys, int64_t stride) {
    tile_zero<0>();
    tile_zero<1>();
    for (int64_t step = 0; step < scratch_.steps; ++step) {
      tile_load<6>(scratch_.q + step * 512);
      tile_load<4>(keys + step * 64, stride);
      tile_dot_bf16<0, 4, 6>();
      tile_load<5>(keys + 16 * stride + step * 64, stride);
      tile_dot_bf16<1, 5, 6>();
    }
    tile_store<0>(scratch_.scores[1]);
    tile_store<1>(scratch_.scores[1] + 256);
  }

  void turn_scores(int64_t n_rows) {
    for (int64_t half = 0; half < 2; ++half) {
      const char* keys[16];
      for (int key = 0; key < 16; ++key)
        keys[key] = reinterpret_cast<const char*>(scratch_.scores[1] + (half * 16 + key) * 16);
      for (int64_t row = 0; row < n_rows; row += 4) {
        __m512i rows[4];
        transpose_words(keys, row * 4, rows);
        for (int i = 0; i < 4; ++i) _mm512_storeu_si512(scratch_.scores[0] + (row + i) * kKeyBlock + half * 16, rows[i]);
      }
    }
  }

  // Rows of keys one after the other, as bfloat16 and filled up with zeros.
  void copy_keys(const BlockRows& rows) {
    const int64_t dims = scratch_.head_dim, k_dims = scratch_.k_dims;
    for (int64_t key = 0; key < kKeyBlock; ++key) {
      element* const to = scratch_.k + key * k_dims;
      for (int64_t dim = 0; dim < dims; dim += 32) {
        const __mmask32 inside = dims - dim < 32 ? 0xffff : 0xffffffff;
        __m512i wide;
        if (rows.int8) {
          const __m256i narrow = _mm256_maskz_loadu_epi8(inside, rows.keys[key] + dim);
          const auto floats = [](__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); };
          wide = (__m512i)_mm512_cvtne2ps_pbh(floats(_mm256_extracti128_si256(narrow, 1)),
                                              floats(_mm256_castsi256_si128(narrow)));
        } else {
          wide = _mm512_maskz_loadu_epi16(inside, rows.keys[key] + dim * 2);
        }
        _mm512_storeu_si512(to + dim, wide);
      }
    }
  }

  // Asks for a block of keys from position `base` on, and for their values: in turns from the halves of both, which lie in
  // different pages. A core follows a run of lines ahead of time within a page only.
  void ask_for(const Item& item, int64_t base) const {
    for (int64_t i = 0; i < task_.n_runs; ++i) {
      const KeyRun& run = task_.runs[i];
      const int64_t from = most(base, run.first_position), stop = least(base + kKeyBlock, run.first_position + run.count);
      if ((run.sight == Sight::annex) != item.annex || from >= stop) continue;
      const int64_t bytes = scratch_.head_dim * (run.key_scales ? 1 : 2);
      const char* const keys = static_cast<const char*>(run.keys) + (from - run.first_position) * run.stride;
      const char* const values = static_cast<const char*>(run.values) + (from - run.first_position) * run.stride;
      const int64_t half = (stop - from + 1) / 2 * run.stride;
      const auto ask = [](const char* address) { __builtin_prefetch(address, 0, 2); };
      for (int64_t row = 0; row < half; row += run.stride)
        for (int64_t at = row; at < row + bytes; at += 64) {
          ask(keys + at), ask(values + at);
          ask(keys + half + at), ask(values + half + at);
        }
    }
  }

  const AttentionTask& task_;
  Scratch& scratch_;
  Item item_;
};

}  // namespace sash::SASH_ISA

#endif
