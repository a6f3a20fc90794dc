// Products with int4 weights on the matrix tiles: unpacked to int8 in cache, a tile of weights at a time.
#pragma once

#include "linear_amx.h"
#include "linear_amx_few.h"
#include "linear_amx_multiplied.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

// One tile of int4 weights unpacked to the int8 layout, a block of 1,024 bytes a group: where two groups share a block
// of 64 inputs, each gets a block of its own with the other's half empty.
inline void unpack_panel(const Linear& linear, int64_t tile, char* panel) {
  const __m512i nibble = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), none = _mm512_setzero_si512();
  const char* weights = linear.tile(tile);
  const bool two = linear.group == 32;
  for (int64_t block = 0; block < linear.blocks(); ++block)
    for (int64_t j = 0; j < 8; ++j) {
      const char* line = weights + block * 512 + j * 64;
      prefetch(line + kStream);
      const __m512i both = _mm512_loadu_si512(line);
      const __m512i low = _mm512_sub_epi8(_mm512_and_si512(both, nibble), eight);
      const __m512i high = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), eight);
      char* to = panel + block * (two ? 2048 : 1024) + j * 64;
      _mm512_store_si512(to, low);
      if (two) {
        _mm512_store_si512(to + 512, none);
        _mm512_store_si512(to + 1024, none);
        to += 1024;
      }
      _mm512_store_si512(to + 512, high);
    }
}

constexpr int64_t kBatch = 2;  // Groups whose products are under way at once.

// One of int4's blocks: 16 m rows by 16 n outputs, [row tile * 2 + weight tile].
struct Int4Block {
  const char* x;          // Prepared rows of the first row tile; the second lies `row_tile` bytes on.
  const char* panel;      // Unpacked weights of the first tile; the second lies `panel_bytes` on.
  int64_t row_tile, panel_bytes, groups;
  const float* scales;    // Of the first row tile's groups; the second's lie groups * 16 on.
  const uint16_t* weight_scales;
};

// Products of row tile `i` with one group: int32 [block's tile][16][16] in `dots`. Row tile 1 finds the weights of row
// tile 0 in their tiles.
template <int64_t per_block, int n>
inline void multiply_group(const Int4Block& block, int64_t group, int i, int32_t* dots) {
  const char* x = block.x + group / per_block * 1024;
  const char* w = block.panel + group * 1024;
  if (i == 0) {
    tile_zero<0>();
    tile_load<4>(x);
    tile_load<6>(w);
    tile_dot_int8<0, 4, 6>();
    tile_store<0>(dots);
    if (n == 1) return;
    tile_zero<1>();
    tile_load<7>(w + block.panel_bytes);
    tile_dot_int8<1, 4, 7>();
    tile_store<1>(dots + 256);
    return;
  }
  tile_zero<2>();
  tile_load<5>(x + block.row_tile);
  tile_dot_int8<2, 5, 6>();
  tile_store<2>(dots + 512);
  if (n == 1) return;
  tile_zero<3>();
  tile_dot_int8<3, 5, 7>();
  tile_store<3>(dots + 768);
}

// Adds the products of groups [first, last) to one tile's sums.
inline void add_groups(float* sums, const int32_t* dots, int64_t first, int64_t last, const float* scales,
                       const uint16_t* weight_scales) {
  f32x16 sum[16];
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) sum[i] = load16(sums + 16 * i);
  for (int64_t group = first; group < last; ++group, dots += 4 * 256) {
    const f32x16 scale = load16_f16(weight_scales + group * kTile);
    const float* own = scales + group * kTile;
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      i32x16 dot;
      std::memcpy(&dot, dots + 16 * i, 64);
      sum[i] = fma16(as_float(dot), all16(own[i]) * scale, sum[i]);
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) store16(sums + 16 * i, sum[i]);
}

// A block's products with all groups: float32 [block's tile][16][16] in `sums`. While the tiles work on one batch of
// groups, vectors turn the one before to floats, in alternation: what a tile stores cannot be read before the store has
// retired, and the processor looks no more than some five hundred steps ahead for work that it can do meanwhile.
template <int64_t per_block, int m, int n>
inline void tile_int4_block(const Int4Block& block, float* sums) {
  alignas(64) int32_t dots[2][kBatch * 4 * 256];
  std::memset(sums, 0, 4 * 256 * sizeof(float));
  int parity = 0;
  for (int64_t done = -kBatch; done < block.groups; done += kBatch, parity ^= 1) {
    const int64_t next = done + kBatch, last = next < block.groups ? next : block.groups;
    for (int step = 0; step < 2 * kBatch; ++step) {
      const int64_t group = next + step / m;
      if (step < m * kBatch && group < block.groups)
        multiply_group<per_block, n>(block, group, step % m, dots[parity ^ 1] + step / m * 1024);
      const int i = step / n, j = step % n;
      if (done >= 0 && step < m * n)
        add_groups(sums + (2 * i + j) * 256, dots[parity] + (2 * i + j) * 256, done, last,
                   block.scales + i * block.groups * kTile, block.weight_scales + j * block.groups * kTile);
    }
  }
}

template <int64_t per_block>
inline void any_int4_block(const Int4Block& block, bool two_rows, bool two_tiles, float* sums) {
  if (two_rows && two_tiles) return tile_int4_block<per_block, 2, 2>(block, sums);
  if (two_rows) return tile_int4_block<per_block, 2, 1>(block, sums);
  if (two_tiles) return tile_int4_block<per_block, 1, 2>(block, sums);
  tile_int4_block<per_block, 1, 1>(block, sums);
}

// Adds the minima's part to the sums of one tile of rows, float32 [16][16]: eight rows at once, whose sums do not wait
// for each other.
inline void add_minima(const Linear& linear, int64_t tile, const Rows& rows, int64_t row, float* sums) {
  const int64_t groups = linear.groups();
  const uint16_t* minimum = linear.minimum + tile * groups * kTile;
  const float* scaled = rows.scaled_sum + Rows::index(groups, row, 0);
  for (int64_t from = 0; from < kTile; from += 8) {
    f32x16 low[8] = {};
    for (int64_t group = 0; group < groups; ++group) {
      const f32x16 here = load16_f16(minimum + group * kTile);
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) low[i] = fma16(all16(scaled[group * kTile + from + i]), here, low[i]);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < 8; ++i) store16(sums + (from + i) * 16, load16(sums + (from + i) * 16) + low[i]);
  }
}

inline void multiply_int4_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  const Form form(linear);
  const int64_t groups = linear.groups(), panel_bytes = groups * 1024;
  char* panel = own_scratch(static_cast<size_t>(2 * panel_bytes));
  alignas(64) float sums[4 * 256];
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    for (int64_t j = 0; j < n; ++j) unpack_panel(linear, tile + j, panel + j * panel_bytes);
    for (int64_t at = row; at < row + count; at += 2 * kTile) {
      const int64_t here = row + count - at < 2 * kTile ? row + count - at : 2 * kTile;
      const Int4Block block{product.rows.at(at, 0),
                            panel,
                            form.row_bytes() * kTile,
                            panel_bytes,
                            groups,
                            product.rows.scale + Rows::index(groups, at, 0),
                            linear.scale4 + tile * groups * kTile};
      if (linear.group == 64) any_int4_block<1>(block, here > kTile, n == 2, sums);
      else any_int4_block<2>(block, here > kTile, n == 2, sums);
      for (int64_t i = 0; linear.minimum != nullptr && i * kTile < here; ++i)
        for (int64_t j = 0; j < n; ++j)
          add_minima(linear, tile + j, product.rows, at + i * kTile, sums + (2 * i + j) * 256);
      put_block(product, at, here, tile, n,
                [&](int64_t i, int64_t j) { return load16(sums + (i / kTile * 2 + j) * 256 + i % kTile * 16); });
    }
  }
}

// So many rows are faster without tiles, and exactly the same.
inline bool by_vectors(const Linear& linear, int64_t count) {
  if (linear.kind == Kind::bf16) return count == 1;
  return count <= (linear.kind == Kind::int8 ? 4 : linear.multiplier != nullptr ? 2 : 8);
}

inline void multiply_by_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  if (by_vectors(linear, count)) return multiply_by_vectors(product, first, last, row, count);
  const bool few = product.n_rows <= kFewRows && count <= kTile;
  if (linear.kind == Kind::bf16)
    return few ? multiply_few<false>(product, first, last, row, count)
               : multiply_tiles<false>(product, first, last, row, count);
  if (linear.kind == Kind::int8)
    return few ? multiply_few<true>(product, first, last, row, count)
               : multiply_tiles<true>(product, first, last, row, count);
  if (linear.multiplier != nullptr)
    return linear.group == 64 ? multiply_multiplied<1>(few, product, first, last, row, count)
                              : multiply_multiplied<2>(few, product, first, last, row, count);
  multiply_int4_tiles(product, first, last, row, count);
}

// kRuns runs of `count` tiles, `apart` tiles from each other, by all rows: at most kTile.
inline void multiply_runs_by_tiles(const Product& product, int64_t tile, int64_t count, int64_t apart) {
  const Linear& linear = *product.linear;
  if (by_vectors(linear, product.n_rows)) return multiply_runs_by_vectors(product, tile, count, apart);
  if (linear.kind == Kind::bf16) return multiply_few_runs<false, kRuns>(product, tile, count, apart, 0, product.n_rows);
  if (linear.kind == Kind::int8) return multiply_few_runs<true, kRuns>(product, tile, count, apart, 0, product.n_rows);
  if (linear.multiplier != nullptr)
    return linear.group == 64 ? multiply_few_multiplied_runs<1, kRuns>(product, tile, count, apart, 0, product.n_rows)
                              : multiply_few_multiplied_runs<2, kRuns>(product, tile, count, apart, 0, product.n_rows);
  for (int64_t run = 0; run < kRuns; ++run, tile += apart) multiply_by_tiles(product, tile, tile + count, 0, product.n_rows);
}

}  // namespace sash::SASH_ISA

#endif
