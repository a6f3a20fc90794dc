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

constexpr int64_t kGroup = 8;           // Blocks that are gathered together; sums stay in the first cache meanwhile.
constexpr float kUnseen = -1e30f;       // Stands for minus infinity, without its NaNs.

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Layouts ("tile" is 1 KiB and contiguous; `cols` = head_dim / 16; `steps` = head_dim / 32, rounded up):
//   tiles of AMX   q [row tile][step][16 rows][32]           k [block][16 keys' tile][step][16 dim pairs][16 keys][2]
//                  p [row tile][half][16 rows][16][2]        v [block][half][col][16][16 dims][2]
//                  In a half of 32 keys, key i is paired with key i + 16.
//   floats         q [row][head_dim]  k [block][16 keys' tile][dim][16 keys]  p [row][64]  v [block][col][64][16 dims]
//   both           s [row of a pair][64]    o [row tile][col][16 rows][16]
struct Scratch {
  int64_t head_dim, cols, steps;
  element *q, *k, *v;
  float* o;
  float* top;          // A row's reference: its weights are 2^(score - top).
  float* sum;          // [row][16]: its weights so far.
  int64_t* position;   // A row's token's.
  float *key_factor, *value_factor;  // [block][64]
  uint16_t* widened;   // int8 rows of a block that also holds bfloat16.
  struct Stage {
    float* s;
    element* p;
    float* correction;   // What a row's sums so far are to be multiplied by before this block's are added ...
    uint32_t corrected;  // ... where its bit is set.
  } stages[2];
  size_t bytes;

  Scratch(int64_t head_dim, void* memory);
  element* k_block(int64_t slot) const { return k + slot * kKeyBlock * k_dims(); }
  element* v_block(int64_t slot) const { return v + slot * kKeyBlock * head_dim; }
  float* o_tile(int64_t tile) const { return o + tile * 16 * head_dim; }
  int64_t k_dims() const { return sizeof(element) == 2 ? steps * 32 : head_dim; }
};

inline Scratch::Scratch(int64_t dims, void* memory) : head_dim(dims), cols(dims / 16), steps((dims + 31) / 32) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(memory);
  bytes = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<decltype(pointer + 0)>(base + bytes);
    bytes += (static_cast<size_t>(count) * sizeof(*pointer) + 63) / 64 * 64;
  };
  take(q, kUnitRows * k_dims());
  take(o, kUnitRows * head_dim);
  take(k, kGroup * kKeyBlock * k_dims());
  take(v, kGroup * kKeyBlock * head_dim);
  take(top, kUnitRows);
  take(sum, kUnitRows * 16);
  take(position, kUnitRows);
  take(key_factor, kGroup * kKeyBlock);
  take(value_factor, kGroup * kKeyBlock);
  take(widened, 2 * kKeyBlock * head_dim);
  for (Stage& stage : stages) {
    take(stage.s, kQueryPair * kKeyBlock);
    take(stage.p, kQueryPair * kKeyBlock);
    take(stage.correction, kQueryPair);
    stage.corrected = 0;
  }
}

}  // namespace sash::SASH_ISA
