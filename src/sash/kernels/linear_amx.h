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

// One tile of int4 weights with multipliers as the int8 weights that they stand for.
inline void unpack_multiplied(const Linear& linear, int64_t tile, char* panel) {
  const __m512i nibble = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), odd = _mm512_set1_epi16(-256);
  const char* weights = linear.tile(tile);
  const int64_t halves = 64 / linear.group;
  const int8_t* multipliers = linear.multiplier + tile * linear.groups() * kTile;
  // Four bytes in a row belong to one output; a 16-bit multiplier serves two of them.
  const auto spread = [](const int8_t* from) {
    const __m512i wide = (__m512i)load16_i8(from);
    return _mm512_or_si512(_mm512_and_si512(wide, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(wide, 16));
  };
  const auto times = [&](__m512i q, __m512i multiplier) {
    const __m512i even = _mm512_srli_epi16(_mm512_mullo_epi16(_mm512_slli_epi16(q, 8), multiplier), 8);
    return _mm512_or_si512(even, _mm512_mullo_epi16(_mm512_and_si512(q, odd), multiplier));
  };
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const __m512i first = spread(multipliers + block * halves * kTile);
    const __m512i second = halves == 1 ? first : spread(multipliers + (block * halves + 1) * kTile);
    for (int64_t j = 0; j < 8; ++j) {
      const char* line = weights + block * 512 + j * 64;
      prefetch(line + kStream);
      const __m512i both = _mm512_loadu_si512(line);
      const __m512i low = _mm512_sub_epi8(_mm512_and_si512(both, nibble), eight);
      const __m512i high = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), eight);
      _mm512_store_si512(panel + block * 1024 + j * 64, times(low, first));
      _mm512_store_si512(panel + block * 1024 + j * 64 + 512, times(high, second));
    }
  }
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
  const int64_t groups = linear.groups(), panel_bytes = groups * 1024;
  char* panel = panel_scratch(static_cast<size_t>(2 * panel_bytes));
  alignas(64) float sums[4 * 256];
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    for (int64_t j = 0; j < n; ++j) unpack_panel(linear, tile + j, panel + j * panel_bytes);
    for (int64_t at = row; at < row + count; at += 2 * kTile) {
      const int64_t here = row + count - at < 2 * kTile ? row + count - at : 2 * kTile;
      const Int4Block block{product.rows.at(form, at, 0),
                            panel,
                            form.row_bytes() * kTile,
                            panel_bytes,
                            groups,
                            product.rows.scale + Rows::index(groups, at, 0),
                            linear.scale4 + tile * groups * kTile};
      if (linear.group == 64) any_int4_block<1>(block, here > kTile, n == 2, sums);
      else any_int4_block<2>(block, here > kTile, n == 2, sums);
      put_block(product, at, here, tile, n, [&](int64_t i, int64_t j) {
        const f32x16 value = load16(sums + (i / kTile * 2 + j) * 256 + i % kTile * 16);
        return linear.minimum != nullptr ? value + minima(linear, tile + j, product.rows, at + i) : value;
      });
    }
  }
}

inline void multiply_multiplied_tiles(const Product& product, int64_t first, int64_t last, int64_t row,
                                      int64_t count) {
  const Linear& linear = *product.linear;
  const int64_t panel_bytes = linear.blocks() * 1024;
  char* panel = panel_scratch(static_cast<size_t>(2 * panel_bytes));
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    for (int64_t j = 0; j < n; ++j) unpack_multiplied(linear, tile + j, panel + j * panel_bytes);
    multiply_panel<true>(product, panel, tile, n, linear.tile(tile + n), n * linear.tile_bytes(), row, count);
  }
}

// So many rows of integers are faster without tiles, and exactly the same.
constexpr int64_t kVectorRows8 = 4, kVectorRows4 = 8;

inline void multiply_by_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  if (product.linear->kind == Kind::bf16) return multiply_tiles<false>(product, first, last, row, count);
  if (count <= (product.linear->kind == Kind::int8 ? kVectorRows8 : kVectorRows4))
    return multiply_by_vectors(product, first, last, row, count);
  if (product.linear->kind == Kind::int8) return multiply_tiles<true>(product, first, last, row, count);
  if (product.linear->multiplier != nullptr) return multiply_multiplied_tiles(product, first, last, row, count);
  multiply_int4_tiles(product, first, last, row, count);
}

}  // namespace sash::SASH_ISA

#endif
