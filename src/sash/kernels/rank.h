// Ranking of what lies outside of the window, whatever the instruction set.
#pragma once

#include <cstdint>

namespace sash {

// Keys of one key/value head side by side, and the queries that rank them.
struct RankTask {
  const float* q;  // [n_rows][head_dim]
  int64_t n_rows, head_dim;
  const char* keys;      // Rows of bfloat16, or of int8 where scales are given, `stride` bytes apart.
  const float* scales;
  int64_t stride;
  int64_t n_blocks, block;  // So many blocks of so many keys.
  float* out;               // [row][out_stride]: the highest product in each block.
  int64_t out_stride;
};

// Where queries and keys of several layers lie; strides of queries count numbers, others bytes (of scales: numbers).
struct Ranking {
  const uint16_t* queries;  // bfloat16; of a layer and token [heads][head_dim].
  int64_t n_layers, n_tokens, layer_step, token_step;
  int64_t n_heads, n_kv_heads, head_dim, block, token_stride;
};

// A stretch of whole blocks: addresses for layer 0 and head 0, and which of all blocks comes first.
struct RankedStretch {
  const char* keys;
  const float* scales;
  int64_t first, n_blocks;
  int64_t layer_stride, head_stride, scale_layer_stride, scale_head_stride;
};

}  // namespace sash
