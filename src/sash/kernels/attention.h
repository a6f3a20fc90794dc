// Attention of a sequence's new tokens over its keys: what it is asked for, whatever the instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sash {

constexpr int64_t kKeyBlock = 32;   // Keys are taken by blocks at absolute positions 32b to 32b + 31 ...
constexpr int64_t kKeyGroup = 256;  // ... and values are summed up by groups of blocks, at 256g to 256g + 255.
constexpr int64_t kQueryPair = 32;  // Query rows that are worked on together: two tiles of 16.
constexpr int64_t kMaxHeadDim = 256;

// Who sees a run of keys.
enum class Sight {
  window,  // Queries whose window holds their positions.
  pinned,  // All later queries, which meet them clamped.
  annex,   // All queries of the step; its positions are slots, in a numbering of their own.
};

// Consecutive positions of one key/value head. Rows of keys and of values are `stride` bytes apart and hold head_dim
// bfloat16, or, where scales are given, head_dim int8 with one scale a row.
struct KeyRun {
  int64_t first_position, count;
  const void* keys;
  const void* values;
  int64_t stride;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
  Sight sight = Sight::window;
  const float* log_weights = nullptr;  // Added to the scores of an annex's keys; null for none.
};

// One key/value head of one sequence in one step. Query row t * per_group + r is head r of the group at token t, of
// position + t; it sees keys j <= its position with j > its position - window (window 0: all) or j in a pinned run,
// and all of an annex.
struct AttentionTask {
  const uint16_t* q;          // bfloat16 [n_tokens * per_group][head_dim], already rotated.
  const uint16_t* q_clamped;  // The same, rotated to meet pins; null where they are the same.
  int64_t n_tokens, per_group, head_dim;
  int64_t position, window;
  const KeyRun* runs;  // Pinned, annex, window, each in ascending position; they cover all that the queries see.
  int64_t n_runs;
  float scale;
  float* out;          // Row (t, r) goes to out + t * out_stride + r * head_dim.
  int64_t out_stride;

  int64_t rows() const { return n_tokens * per_group; }
};

// Query rows that share a gathered group of keys at most: their sums, queries and the group fit a second-level cache.
inline int64_t attention_max_rows(int64_t head_dim) {
  const int64_t rows = 131072 / head_dim / kQueryPair * kQueryPair;
  return rows < 1024 ? rows : 1024;
}

// How many query rows one call should take, so that `n_tasks` tasks of `rows` rows make enough units for all threads to
// end together, and yet share what gathering a group of keys costs among many rows.
inline int64_t attention_unit_rows(int64_t rows, int64_t n_tasks, int64_t n_threads) {
  const int64_t most = 1024, fair = rows * n_tasks / (4 * n_threads);
  const int64_t wanted = fair < 2 * kQueryPair ? 2 * kQueryPair : fair > most ? most : fair;
  const int64_t parts = (rows + wanted - 1) / wanted;
  return (rows + parts * kQueryPair - 1) / (parts * kQueryPair) * kQueryPair;
}

}  // namespace sash
