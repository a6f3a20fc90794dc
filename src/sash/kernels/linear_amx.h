// Products with packed weights on the matrix tiles. A tile product takes 64 bytes of 16 rows and of 16 outputs at once.
#pragma once

#include <memory>

#include "linear_isa.h"
#include "tiles.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

constexpr int64_t kStream = 4096;  // Bytes of weights that are asked for ahead of use.

template <bool integer, int c, int a, int b>
inline void tile_dot() {
  if (integer) tile_dot_int8<c, a, b>(); else tile_dot_bf16<c, a, b>();
}

// Tiles 0..3 hold sums: 0 1 / 2 3 of two row tiles by two weight tiles; 4, 5 rows; 6, 7 weights.

// Products of 16 m rows by 16 n outputs over all inputs, as float32 or int32 [16 m][32] in `out`.
template <bool integer, int m, int n>
inline void tile_block(const char* rows, int64_t row_tile, const char* weights, int64_t weight_tile, int64_t blocks,
                       const char* next, int64_t next_step, float* out) {
  tile_zero<0>();
  if (n == 2) tile_zero<1>();
  if (m == 2) tile_zero<2>();
  if (m == 2 && n == 2) tile_zero<3>();
  for (int64_t block = 0; block < blocks; ++block) {
    const char* x = rows + block * 1024;
    const char* w = weights + block * 1024;
    for (int64_t ahead = 0; ahead < next_step; ahead += 64) prefetch_far(next + block * next_step + ahead);
    tile_load<4>(x);
    tile_load<6>(w);
    tile_dot<integer, 0, 4, 6>();
    if (n == 2) {
      tile_load<7>(w + weight_tile);
      tile_dot<integer, 1, 4, 7>();
    }
    if (m == 2) {
      tile_load<5>(x + row_tile);
      tile_dot<integer, 2, 5, 6>();
      if (n == 2) {
        tile_dot<integer, 3, 5, 7>();
      }
    }
  }
  tile_store<0>(out, 128);
  if (n == 2) tile_store<1>(out + 16, 128);
  if (m == 2) tile_store<2>(out + 16 * 32, 128);
  if (m == 2 && n == 2) tile_store<3>(out + 16 * 32 + 16, 128);
}

// Hands sums [rows][32] of `n` tiles to the sink; integers become floats by their scales.
inline void finish_block(const Product& product, const float* sums, int64_t row, int64_t count, int64_t tile, int64_t n) {
  const Sink sink{product};
  const bool integer = product.linear->kind == Kind::int8;
  f32x16 scale[2] = {};
  for (int64_t j = 0; integer && j < n; ++j) scale[j] = load16(product.linear->scale8 + (tile + j) * kTile);
  for (int64_t i = 0; i < count; ++i) {
    f32x16 even = {};
    for (int64_t j = 0; j < n; ++j) {
      f32x16 value = load16(sums + i * 32 + j * 16);
      if (integer) value = as_float((i32x16)value) * (all16(product.rows.scale[row + i]) * scale[j]);
      sink.put(row + i, tile + j, value, even);
    }
  }
}

template <bool integer>
inline void multiply_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  const Form form(linear);
  const int64_t blocks = linear.blocks(), panel = blocks * 1024, row_tiles = ceil_div(count, kTile);
  const int64_t pairs = ceil_div(row_tiles, 2);
  alignas(64) float sums[32 * 32];
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    const char* weights = linear.tile(tile);
    // While rows go by, the next weights come in: each pair of row tiles asks for its share.
    const int64_t step = pairs == 1 ? 0 : ceil_div(ceil_div(n * panel, pairs), blocks * 64) * 64;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t at = row + pair * 32, here = row + count - at < 32 ? row + count - at : 32;
      const char* x = product.rows.at(form, at, 0);
      const char* next = pairs == 1 ? weights + kStream : weights + n * panel + pair * step * blocks;
      const bool two = here > kTile;
      if (pairs == 1) {
        if (two && n == 2) tile_block<integer, 2, 2>(x, panel, weights, panel, blocks, next, 1024, sums);
        else if (two) tile_block<integer, 2, 1>(x, panel, weights, panel, blocks, next, 1024, sums);
        else if (n == 2) tile_block<integer, 1, 2>(x, panel, weights, panel, blocks, next, 1024, sums);
        else tile_block<integer, 1, 1>(x, panel, weights, panel, blocks, next, 1024, sums);
      } else if (two && n == 2) {
        tile_block<integer, 2, 2>(x, panel, weights, panel, blocks, next, step, sums);
      } else if (two) {
        tile_block<integer, 2, 1>(x, panel, weights, panel, blocks, next, step, sums);
      } else if (n == 2) {
        tile_block<integer, 1, 2>(x, panel, weights, panel, blocks, next, step, sums);
      } else {
        tile_block<integer, 1, 1>(x, panel, weights, panel, blocks, next, step, sums);
      }
      finish_block(product, sums, at, here, tile, n);
    }
  }
}

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

// Adds one group's products, int32 [16][16], to sixteen rows' sums.
inline void add_group(f32x16* sum, const int32_t* dots, const float* scales, int64_t stride, f32x16 scale) {
  for (int64_t i = 0; i < 16; ++i) {
    i32x16 dot;
    std::memcpy(&dot, dots + 16 * i, 64);
    sum[i] = fma16(as_float(dot), all16(scales[i * stride]) * scale, sum[i]);
  }
}

// Sixteen rows by one unpacked tile of int4 weights: float32 [16][32] in `out`. A group's sums are turned to floats
// while the tiles work on the next group.
inline void tile_int4_block(const Linear& linear, const char* panel, int64_t tile, const char* x, const float* scales,
                            float* out) {
  const int64_t groups = linear.groups(), per_block = 64 / linear.group;
  const uint16_t* weight_scales = linear.scale4 + tile * groups * kTile;
  alignas(64) int32_t dots[2][256];
  f32x16 sum[16] = {};
  tile_zero<0>();
  tile_load<4>(x);
  tile_load<6>(panel);
  tile_dot_int8<0, 4, 6>();
  tile_store<0>(dots[0]);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t next = group + 1;
    if (next < groups) {
      tile_load<5>(x + next / per_block * 1024);
      tile_load<7>(panel + next * 1024);
      tile_zero<1>();
      tile_dot_int8<1, 5, 7>();
      tile_store<1>(dots[next & 1]);
    }
    add_group(sum, dots[group & 1], scales + group, groups, load16_f16(weight_scales + group * kTile));
  }
  for (int64_t i = 0; i < 16; ++i) store16(out + 32 * i, sum[i]);
}

inline char* panel_scratch(size_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local size_t held = 0;
  if (bytes + 64 > held) {
    memory.reset(new char[bytes + 64]);
    held = bytes + 64;
  }
  return memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
}

inline void multiply_int4_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  const Form form(linear);
  const Sink sink{product};
  const int64_t panel_bytes = linear.groups() * 1024;
  char* panel = panel_scratch(static_cast<size_t>(2 * panel_bytes));
  alignas(64) float sums[16 * 32];
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    for (int64_t j = 0; j < n; ++j) unpack_panel(linear, tile + j, panel + j * panel_bytes);
    for (int64_t at = row; at < row + count; at += kTile) {
      const char* x = product.rows.at(form, at, 0);
      for (int64_t j = 0; j < n; ++j)
        tile_int4_block(linear, panel + j * panel_bytes, tile + j, x, product.rows.scale + at * form.groups,
                        sums + 16 * j);
      const int64_t here = row + count - at < kTile ? row + count - at : kTile;
      for (int64_t i = 0; i < here; ++i) {
        f32x16 even = {};
        for (int64_t j = 0; j < n; ++j) {
          f32x16 value = load16(sums + 32 * i + 16 * j);
          if (linear.minimum != nullptr) value += minima(linear, tile + j, product.rows, at + i);
          sink.put(at + i, tile + j, value, even);
        }
      }
    }
  }
}

constexpr int64_t kVectorRows = 4;  // So many rows of int4 are faster without tiles.

inline void multiply_by_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  if (product.linear->kind == Kind::bf16) return multiply_tiles<false>(product, first, last, row, count);
  if (product.linear->kind == Kind::int8) return multiply_tiles<true>(product, first, last, row, count);
  if (count > kVectorRows) return multiply_int4_tiles(product, first, last, row, count);
  multiply_by_vectors(product, first, last, row, count);
}

}  // namespace sash::SASH_ISA

#endif
