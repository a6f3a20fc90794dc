// Ranking of what lies outside of the window, whatever the instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace sash {

constexpr int64_t kMaxRankDim = 256;

// Keys of one key/value head side by side, in whole blocks of which `first` is the first.
struct RankedKeys {
  const char* keys;      // Rows of bfloat16, or of int8 where scales are given.
  const float* scales;
  int64_t first, n_blocks;
};

// Keys of one key/value head, and the queries that rank them.
struct RankTask {
  const uint16_t* q;  // bfloat16 [n_rows][head_dim]; head_dim is a multiple of 16, at most kMaxRankDim.
  int64_t n_rows, head_dim;
  const RankedKeys* parts;
  int64_t n_parts;
  int64_t stride, block;  // Bytes from key to key; keys of a block.
  float* out;             // [row][out_stride]: the highest product in each block.
  int64_t out_stride;
};

// What the queries of one key/value head make of all blocks.
struct ShareTask {
  const float* products;  // [n_rows][stride]; beyond the blocks -FLT_MAX, up to a multiple of 16.
  int64_t n_rows, n_blocks, stride;
  float scale;
  float* out;  // [stride]: the logarithm of the largest share of all blocks that a row gives this one.
};

// Where queries and keys of several layers lie; strides of queries count numbers, others bytes (of scales: numbers).
struct Ranking {
  const uint16_t* queries;  // bfloat16; of a layer and token [heads][head_dim].
  int64_t n_layers, n_tokens, layer_step, token_step;
  int64_t n_heads, n_kv_heads, head_dim, block, token_stride;
  int64_t n_chosen;  // Blocks that every head chooses.
  float scale;       // Of products, in attention.
  std::vector<int64_t> left_out;  // Blocks that are not to be chosen.
};

// A stretch of whole blocks: addresses for layer 0 and head 0, and which of all blocks comes first. Values lie as keys
// do, so many bytes further on; their scales so many numbers.
struct RankedStretch {
  const char* keys;
  const float* scales;
  int64_t first, n_blocks;
  int64_t layer_stride, head_stride, scale_layer_stride, scale_head_stride;
  int64_t to_values, to_value_scales;

  // All of its keys of one layer and head.
  RankedKeys keys_of(int64_t layer, int64_t head) const {
    return {keys + layer * layer_stride + head * head_stride,
            scales ? scales + layer * scale_layer_stride + head * scale_head_stride : nullptr, first, n_blocks};
  }
};

// `n_stretches` rows of a table of nine numbers each, as sash.network.lookup writes them.
std::vector<RankedStretch> stretches_of(const int64_t* table, int64_t n_stretches);

// Takes blocks out of the ranking, and what is in rows of products behind the last block.
void leave_out(const std::vector<int64_t>& blocks, float* products, int64_t n_rows, int64_t n_blocks, int64_t stride);

// Puts the blocks with the largest shares to the front of `order`, the first ones of equals.
void order_blocks(const float* share, int64_t n_blocks, int64_t n_chosen, std::vector<int64_t>& order);

}  // namespace sash
