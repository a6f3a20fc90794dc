// How much queries want blocks of keys: of each block the highest product with any of its keys.
#pragma once

#include <algorithm>
#include <cfloat>

#include "rank.h"
#include "simd.h"
#include "tiles.h"

namespace sash::SASH_ISA {

// Asks for the keys with which a stretch begins: some are a block only.
inline void fetch_first(const RankTask& task, const RankedKeys& part) {
  const int64_t bytes = std::min<int64_t>(32, part.n_blocks * task.block) * task.stride;
  for (int64_t line = 0; line < bytes; line += 64) prefetch(part.keys + line);
}

#if defined(__AMX_TILE__)

// Sixteen queries at a time, and twice sixteen keys: tiles 0 and 1 hold products [key][query], 4 the keys, 6 the queries.
struct RankTiles {
  static constexpr int64_t kColumns = 16, kKeys = 32;
  alignas(64) uint16_t q[kMaxRankDim / 32][16][16][2];  // Of each 32 components: [pair][query][component].
  alignas(64) uint16_t keys[kKeys][kMaxRankDim];
  alignas(64) float products[kKeys][16];

  void take_queries(const RankTask& task, int64_t row, int64_t count) {
    std::memset(q, 0, static_cast<size_t>((task.head_dim + 31) / 32) * sizeof(q[0]));
    for (int64_t i = 0; i < count; ++i)
      for (int64_t dim = 0; dim < task.head_dim; dim += 2)
        std::memcpy(q[dim / 32][dim % 32 / 2][i], task.q + (row + i) * task.head_dim + dim, 4);
  }

  // `count` keys as bfloat16, with zeros behind them up to whole tiles; integers to 127 are exact.
  void take_keys(const char* from, int64_t stride, int64_t head_dim, bool int8, int64_t count) {
    for (int64_t i = 0; i < count; ++i, from += stride) {
      if (!int8) {
        std::memcpy(keys[i], from, static_cast<size_t>(head_dim) * 2);
      } else {
        for (int64_t dim = 0; dim < head_dim; dim += 16)
          store_bf16(keys[i] + dim, as_float(load16_i8(reinterpret_cast<const int8_t*>(from) + dim)));
      }
      if (head_dim % 32) std::memset(keys[i] + head_dim, 0, 32);
    }
    for (int64_t i = count; i % 16; ++i) std::memset(keys[i], 0, static_cast<size_t>(head_dim + 31) / 32 * 64);
  }

  void multiply(const RankTask& task, const RankedKeys& part, int64_t key, int64_t count) {
    const char* from = part.keys + key * task.stride;
    int64_t stride = task.stride;
    const bool pair = count > 16;
    if (pair) {
      for (int64_t line = 0; line < kKeys * stride; line += 64) prefetch(from + kKeys * stride + line);
    }
    if (part.scales != nullptr || count % 16 || task.head_dim % 32) {
      take_keys(from, stride, task.head_dim, part.scales != nullptr, count);
      from = reinterpret_cast<const char*>(keys), stride = sizeof(keys[0]);
    }
    tile_zero<0>();
    tile_zero<1>();
    for (int64_t block = 0; 32 * block < task.head_dim; ++block, from += 64) {
      tile_load<6>(q[block]);
      tile_load<4>(from, stride);
      tile_dot_bf16<0, 4, 6>();
      if (!pair) continue;
      tile_load<5>(from + 16 * stride, stride);
      tile_dot_bf16<1, 5, 6>();
    }
    tile_store<0>(products);
    if (pair) tile_store<1>(products[16]);
    if (part.scales == nullptr) return;
    for (int64_t i = 0; i < count; ++i)
      store16(products[i], load16(products[i]) * all16(part.scales[key + i]));
  }

  // The highest of sixteen keys for each query.
  f32x16 best16(int64_t first) const {
    f32x16 best[8];
    for (int64_t i = 0; i < 8; ++i) best[i] = max16(load16(products[first + i]), load16(products[first + 8 + i]));
    for (int64_t width = 4; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) best[i] = max16(best[i], best[i + width]);
    return best[0];
  }
};

inline void rank_part(const RankTask& task, const RankedKeys& part, int64_t row, int64_t n, RankTiles& tiles) {
  const int64_t n_keys = part.n_blocks * task.block, step = task.block % 16 ? 1 : 16;
  f32x16 best = all16(-FLT_MAX);
  int64_t block = part.first, left = task.block;
  for (int64_t key = 0; key < n_keys; key += RankTiles::kKeys) {
    const int64_t count = std::min(RankTiles::kKeys, n_keys - key);
    tiles.multiply(task, part, key, count);
    for (int64_t i = 0; i < count; i += step) {
      best = max16(step == 16 ? tiles.best16(i) : load16(tiles.products[i]), best);
      left -= step;
      if (left > 0) continue;
      float each[16];
      store16(each, best);
      for (int64_t at = 0; at < n; ++at) task.out[(row + at) * task.out_stride + block] = each[at];
      best = all16(-FLT_MAX), left = task.block, ++block;
    }
  }
}

inline void rank_blocks(const RankTask& task) {
  RankTiles tiles;
  for (int64_t row = 0; row < task.n_rows; row += RankTiles::kColumns) {
    const int64_t n = std::min(RankTiles::kColumns, task.n_rows - row);
    tiles.take_queries(task, row, n);
    for (int64_t i = 0; i < task.n_parts; ++i) {
      if (i + 1 < task.n_parts) fetch_first(task, task.parts[i + 1]);
      rank_part(task, task.parts[i], row, n, tiles);
    }
  }
}

#else

inline f32x16 key_part(const char* row, int64_t dim, bool int8) {
  if (int8) return as_float(load16_i8(reinterpret_cast<const int8_t*>(row) + dim));
  return load16_bf16(reinterpret_cast<const uint16_t*>(row) + dim);
}

template <int n>
inline void rank_part(const RankTask& task, const RankedKeys& part, int64_t row, const f32x16 (*q)[kMaxRankDim / 16]) {
  const bool int8 = part.scales != nullptr;
  for (int64_t block = 0; block < part.n_blocks; ++block) {
    float best[n];
    for (int i = 0; i < n; ++i) best[i] = -FLT_MAX;
    for (int64_t key = block * task.block; key < (block + 1) * task.block; ++key) {
      const char* const at = part.keys + key * task.stride;
      f32x16 sum[n] = {};
      for (int64_t dim = 0; dim < task.head_dim; dim += 16) {
        const f32x16 some = key_part(at, dim, int8);
        for (int i = 0; i < n; ++i) sum[i] = fma16(q[i][dim / 16], some, sum[i]);
      }
      const float scale = int8 ? part.scales[key] : 1.0f;
      for (int i = 0; i < n; ++i) {
        const float score = sum16(sum[i]) * scale;
        best[i] = score > best[i] ? score : best[i];
      }
    }
    for (int i = 0; i < n; ++i) task.out[(row + i) * task.out_stride + part.first + block] = best[i];
  }
}

template <int n>
inline void rank_rows(const RankTask& task, int64_t row) {
  f32x16 q[n][kMaxRankDim / 16];
  for (int i = 0; i < n; ++i)
    for (int64_t dim = 0; dim < task.head_dim; dim += 16)
      q[i][dim / 16] = load16_bf16(task.q + (row + i) * task.head_dim + dim);
  for (int64_t i = 0; i < task.n_parts; ++i) {
    if (i + 1 < task.n_parts) fetch_first(task, task.parts[i + 1]);
    rank_part<n>(task, task.parts[i], row, q);
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

#endif

inline void share_blocks(const ShareTask& task) {
  constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
  const f32x16 scale = all16(task.scale);
  for (int64_t row = 0; row < task.n_rows; ++row) {
    const float* const products = task.products + row * task.stride;
    f32x16 tops = all16(-FLT_MAX), sums = {};
    for (int64_t at = 0; at < task.n_blocks; at += 16) tops = max16(load16(products + at), tops);
    const f32x16 top = all16(top16(tops)) * scale;
    for (int64_t at = 0; at < task.n_blocks; at += 16)
      sums += exp2_16((load16(products + at) * scale - top) * all16(kLog2e));
    const f32x16 whole = top + all16(kLn2 * std::log2(sum16(sums)));
    for (int64_t at = 0; at < task.n_blocks; at += 16) {
      const f32x16 share = load16(products + at) * scale - whole;
      store16(task.out + at, row == 0 ? share : max16(share, load16(task.out + at)));
    }
  }
}

}  // namespace sash::SASH_ISA
