// Products with packed weights on the matrix tiles. A tile product takes 64 bytes of 16 rows and of 16 outputs at once.
#pragma once

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

// Puts values (i, j) of rows [row, row + count) and `n` tiles where they belong; see Sink, which does it one by one.
template <class Value>
inline void put_block(const Product& product, int64_t row, int64_t count, int64_t tile, int64_t n, Value&& value) {
  const Linear& linear = *product.linear;
  float* out = product.out + row * product.out_stride;
  const int64_t stride = product.out_stride;
  if (product.finish == Finish::gate && linear.bias == nullptr) {
    out += tile / 2 * kTile;
    for (int64_t i = 0; i < count; ++i) store16(out + i * stride, gated(value(i, 0), value(i, 1), product.activation));
    return;
  }
  if ((tile + n) * kTile > linear.n || linear.bias != nullptr || product.finish == Finish::gate) {
    const Sink sink{product};
    for (int64_t i = 0; i < count; ++i) {
      f32x16 even = {};
      for (int64_t j = 0; j < n; ++j) sink.put(row + i, tile + j, value(i, j), even);
    }
    return;
  }
  out += tile * kTile;
  const bool add = product.finish == Finish::add;
  for (int64_t j = 0; j < n; ++j, out += kTile)
    for (int64_t i = 0; i < count; ++i) {
      float* to = out + i * stride;
      store16(to, add ? load16(to) + value(i, j) : value(i, j));
    }
}

// Hands sums [rows][32] of `n` tiles on; integers become floats by their scales.
inline void finish_block(const Product& product, const float* sums, int64_t row, int64_t count, int64_t tile, int64_t n) {
  if (product.linear->kind == Kind::bf16) {
    put_block(product, row, count, tile, n, [&](int64_t i, int64_t j) { return load16(sums + i * 32 + j * 16); });
    return;
  }
  f32x16 scale[2] = {};
  for (int64_t j = 0; j < n; ++j) scale[j] = load16(product.linear->scale8 + (tile + j) * kTile);
  const float* scales = product.rows.scale + row;
  put_block(product, row, count, tile, n, [&](int64_t i, int64_t j) {
    return as_float((i32x16)load16(sums + i * 32 + j * 16)) * (all16(scales[i]) * scale[j]);
  });
}

template <bool integer>
inline void any_block(bool two_rows, bool two_tiles, const char* rows, int64_t panel, const char* weights, int64_t blocks,
                      const char* next, int64_t step, float* sums) {
  if (two_rows && two_tiles) return tile_block<integer, 2, 2>(rows, panel, weights, panel, blocks, next, step, sums);
  if (two_rows) return tile_block<integer, 2, 1>(rows, panel, weights, panel, blocks, next, step, sums);
  if (two_tiles) return tile_block<integer, 1, 2>(rows, panel, weights, panel, blocks, next, step, sums);
  tile_block<integer, 1, 1>(rows, panel, weights, panel, blocks, next, step, sums);
}

// One or two tiles of weights, [tile][block of 1,024 bytes], by all rows. While rows go by, the weights at `next` come
// in: each pair of row tiles asks for its share of `next_bytes`, or a lone pair for what it is about to read.
template <bool integer>
inline void multiply_panel(const Product& product, const char* weights, int64_t tile, int64_t n, const char* next,
                           int64_t next_bytes, int64_t row, int64_t count) {
  const Form form(*product.linear);
  const int64_t blocks = form.row_bytes() / 64, panel = blocks * 1024, pairs = ceil_div(count, 2 * kTile);
  const int64_t step = next_bytes == 0 ? 0 : ceil_div(ceil_div(next_bytes, pairs), blocks * 64) * 64;
  alignas(64) float sums[32 * 32];
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t at = row + pair * 32, here = row + count - at < 32 ? row + count - at : 32;
    any_block<integer>(here > kTile, n == 2, product.rows.at(form, at, 0), panel, weights, blocks,
                       next + pair * step * blocks, step, sums);
    finish_block(product, sums, at, here, tile, n);
  }
}

template <bool integer>
inline void multiply_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  const bool lone = count <= 2 * kTile;
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1, bytes = n * linear.tile_bytes();
    const char* weights = linear.tile(tile);
    if (lone) multiply_panel<integer>(product, weights, tile, n, weights + kStream, linear.tile_bytes(), row, count);
    else multiply_panel<integer>(product, weights, tile, n, weights + bytes, bytes, row, count);
  }
}

}  // namespace sash::SASH_ISA

#endif
