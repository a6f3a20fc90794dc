// How much queries want blocks of keys: of each block the highest product with any of its keys.
#pragma once

#include <cfloat>

#include "rank.h"
#include "simd.h"

namespace sash::SASH_ISA {

inline f32x16 key_part(const char* row, int64_t dim, bool int8) {
  if (int8) return as_float(load16_i8(reinterpret_cast<const int8_t*>(row) + dim));
  typedef uint16_t u16x16 __attribute__((vector_size(32)));
  u16x16 bits;
  std::memcpy(&bits, row + 2 * dim, 32);
  return (f32x16)(__builtin_convertvector(bits, i32x16) << 16);
}

template <int n>
inline void rank_rows(const RankTask& task, int64_t row) {
  const bool int8 = task.scales != nullptr;
  for (int64_t block = 0; block < task.n_blocks; ++block) {
    float best[n];
    for (int i = 0; i < n; ++i) best[i] = -FLT_MAX;
    for (int64_t key = block * task.block; key < (block + 1) * task.block; ++key) {
      const char* const at = task.keys + key * task.stride;
      f32x16 sum[n] = {};
      for (int64_t dim = 0; dim < task.head_dim; dim += 16) {
        const f32x16 part = key_part(at, dim, int8);
        for (int i = 0; i < n; ++i) sum[i] = fma16(load16(task.q + (row + i) * task.head_dim + dim), part, sum[i]);
      }
      const float scale = int8 ? task.scales[key] : 1.0f;
      for (int i = 0; i < n; ++i) {
        const float score = sum16(sum[i]) * scale;
        best[i] = score > best[i] ? score : best[i];
      }
    }
    for (int i = 0; i < n; ++i) task.out[(row + i) * task.out_stride + block] = best[i];
  }
}

inline void rank_blocks(const RankTask& task) {
  int64_t row = 0;
  for (; row + 4 <= task.n_rows; row += 4) rank_rows<4>(task, row);
  switch (task.n_rows - row) {
    case 3: rank_rows<3>(task, row); break;
    case 2: rank_rows<2>(task, row); break;
    case 1: rank_rows<1>(task, row); break;
  }
}

}  // namespace sash::SASH_ISA
