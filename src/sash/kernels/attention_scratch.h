// What one thread works with while it attends: queries, sums and gathered blocks of keys, laid out for the products.
#pragma once

#include <cstdint>

#include "attention.h"
#include "simd.h"
#include "tiles.h"

namespace sash::SASH_ISA {

#if defined(__AMX_TILE__)
typedef uint16_t element;  // Products take bfloat16.
#else
typedef float element;
#endif

constexpr int64_t kBlocks = kKeyGroup / kKeyBlock;
constexpr float kUnseen = -1e30f;  // Stands for minus infinity, without its NaNs.

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Layouts; a "tile" is 1 KiB and contiguous, `cols` = head_dim / 16, `steps` = head_dim / 32 rounded up.
//   tiles of AMX   q [row tile][step][16 rows][32]   k [block][16 keys' tile][step][16 dim pairs][16 keys][2]
//                  weights [block][row tile of a pair][16 rows][16][2]
//                  v [pair of cols][block][col of the pair][16][16 dims][2]; without its partner the last col has no room
//                  for one. Keys i and i + 16 of a block are a pair, in weights and v.
//   floats         q [row][head_dim]                 k [block][16 keys' tile][dim][16 keys]
//                  weights [block][row of a pair][32 keys]                   v [block][col][32 keys][16 dims]
//   both           scores [row of a pair][32 keys]   o [row tile][col][16 rows][16 dims]
struct Scratch {
  int64_t head_dim, cols, steps, k_dims;
  float* scores[2];
  element *weights, *q, *k, *v;
  float* o;
  float* bias;          // Minus a row's reference: its weights are 2^(score + bias).
  float* sum;           // [row][16]: its weights so far.
  int64_t* position;    // A row's token's.
  float* correction;    // [row of a pair]: what its sums of earlier groups are to be multiplied by ...
  uint32_t corrected;   // ... where its bit is set.
  float *key_factor, *value_factor;  // [block][32]: scores and weights are to be multiplied by them.
  bool scaled[kBlocks];              // Whether the values' are other than one.
  float* key_bias;                   // [block][32]: added to scores as powers of two ...
  bool biased[kBlocks];              // ... where this says so.
  uint16_t* widened;    // int8 rows of a block that also holds bfloat16.
  element* copies;      // Of a few rows with AMX: twice what tiles multiply at once.
  size_t bytes;

  Scratch(int64_t head_dim, void* memory);
  element* k_block(int64_t block) const { return k + block * kKeyBlock * k_dims; }
  // Of AMX: where a column of tiles begins, and how far it is to the same one of the next block.
  int64_t v_step(int64_t col) const { return (col / 2 * 2 + 1 < cols ? 2 : 1) * 512; }
  element* v_tile(int64_t col, int64_t block) const {
    return v + col / 2 * kBlocks * 1024 + block * v_step(col) + col % 2 * 512;
  }
  // Of floats.
  element* v_block(int64_t block) const { return v + block * kKeyBlock * head_dim; }
  element* weights_row(int64_t block, int64_t row) const { return weights + (block * kQueryPair + row) * kKeyBlock; }
  float* o_tile(int64_t tile) const { return o + tile * 16 * head_dim; }
};

inline Scratch::Scratch(int64_t dims, void* memory)
    : head_dim(dims), cols(dims / 16), steps((dims + 31) / 32),
      k_dims(sizeof(element) == 2 ? steps * 32 : dims), corrected(0), bytes(0) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(memory);
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<decltype(pointer + 0)>(base + bytes);
    bytes += (static_cast<size_t>(count) * sizeof(*pointer) + 63) / 64 * 64;
  };
  const int64_t rows = attention_max_rows(dims);
  take(scores[0], kQueryPair * kKeyBlock);
  take(scores[1], kQueryPair * kKeyBlock);
  take(weights, kQueryPair * kKeyGroup);
  take(q, rows * k_dims);
  take(o, rows * head_dim);
  take(k, kKeyGroup * k_dims);
  take(v, kKeyGroup * head_dim);
  take(bias, rows);
  take(sum, rows * 16);
  take(position, rows);
  take(correction, kQueryPair);
  take(key_factor, kKeyGroup);
  take(value_factor, kKeyGroup);
  take(key_bias, kKeyGroup);
  take(widened, 2 * kKeyBlock * head_dim);
  take(copies, 2048);
}

}  // namespace sash::SASH_ISA
