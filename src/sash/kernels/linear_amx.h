// Products with packed weights on the matrix tiles. A tile product takes 64 bytes of 16 rows and of 16 outputs at once.
#pragma once

#include <algorithm>
#include <memory>

#include "linear_runs.h"
#include "tiles.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

constexpr int64_t kStream = 4096;  // Bytes of weights that are asked for ahead of use.

template <bool integer, int c, int a, int b>
inline void tile_dot() {
  if (integer) tile_dot_int8<c, a, b>(); else tile_dot_bf16<c, a, b>();
}

// Some blocks of inputs that up to 32 rows and 32 outputs meet.
struct Walk {
  const char* rows;                  // The first row tile's first block; the second tile's lies `row_tile` bytes on.
  const char* weights;               // The same of the weights.
  int64_t row_tile, weight_tile;
  int64_t blocks;
  bool carried;                      // Sums go on from those of earlier blocks.
  bool near = false;                 // What comes next is fetched into the first-level cache: worth it beside many rows.
  const char* next = nullptr;        // Of each block from here on, and of those `weight_tile` bytes on, lines that are
  int64_t next_lines = 0;            // fetched into the second-level cache meanwhile.
  const float* add_to = nullptr;     // Rows of the output that will be added to.
  int64_t add_stride = 0;
};

inline void prefetch_tile(const char* from) {
#pragma GCC unroll 16
  for (int64_t at = 0; at < 1024; at += 64) prefetch(from + at);
}

// Lines of the output that block `block` of a walk asks for.
template <int m>
inline void prefetch_output(const Walk& walk, int64_t block) {
  const int64_t each = ceil_div(16 * m, walk.blocks);
  for (int64_t row = block * each; row < 16 * m && row < (block + 1) * each; ++row) {
    __builtin_prefetch(walk.add_to + row * walk.add_stride, 1, 3);
    __builtin_prefetch(walk.add_to + row * walk.add_stride + 16, 1, 3);
  }
}

// Tiles 0..3 hold sums: 0 1 / 2 3 of two row tiles by two weight tiles; 4, 5 rows; 6, 7 weights.

// What vectors do while the tiles work: nothing.
struct Idle {
  void operator()(int64_t, int64_t) const {}
};

// Products of 16 m rows by 16 n outputs over a walk's blocks, as float32 or int32 [16 m][32] in `sums`. In each of them
// `meanwhile(block, 0)` and `meanwhile(block, 1)` are called between tile products.
template <bool integer, int m, int n, class Meanwhile>
inline void tile_block(const Walk& walk, float* sums, const Meanwhile& meanwhile) {
  if (walk.carried) {
    tile_load<0>(sums, 128);
    if (n == 2) tile_load<1>(sums + 16, 128);
    if (m == 2) tile_load<2>(sums + 16 * 32, 128);
    if (m == 2 && n == 2) tile_load<3>(sums + 16 * 32 + 16, 128);
  } else {
    tile_zero<0>();
    if (n == 2) tile_zero<1>();
    if (m == 2) tile_zero<2>();
    if (m == 2 && n == 2) tile_zero<3>();
  }
  for (int64_t block = 0; block < walk.blocks; ++block) {
    const char* x = walk.rows + block * 1024;
    const char* w = walk.weights + block * 1024;
    for (int64_t line = 0; line < walk.next_lines; ++line) {
      prefetch_far(walk.next + block * 1024 + line * 64);
      if (n == 2) prefetch_far(walk.next + walk.weight_tile + block * 1024 + line * 64);
    }
    if (walk.add_to != nullptr) prefetch_output<m>(walk, block);
    tile_load<4>(x);
    if (walk.near) prefetch_tile(x + 1024);
    tile_load<6>(w);
    tile_dot<integer, 0, 4, 6>();
    if (walk.near) prefetch_tile(w + 1024);
    meanwhile(block, 0);
    if (n == 2) {
      tile_load<7>(w + walk.weight_tile);
      tile_dot<integer, 1, 4, 7>();
      if (walk.near) prefetch_tile(w + walk.weight_tile + 1024);
    }
    if (m == 2) {
      tile_load<5>(x + walk.row_tile);
      tile_dot<integer, 2, 5, 6>();
      if (walk.near) prefetch_tile(x + walk.row_tile + 1024);
    }
    meanwhile(block, 1);
    if (m == 2 && n == 2) tile_dot<integer, 3, 5, 7>();
  }
  tile_store<0>(sums, 128);
  if (n == 2) tile_store<1>(sums + 16, 128);
  if (m == 2) tile_store<2>(sums + 16 * 32, 128);
  if (m == 2 && n == 2) tile_store<3>(sums + 16 * 32 + 16, 128);
}

template <bool integer, class Meanwhile = Idle>
inline void any_block(bool two_rows, bool two_tiles, const Walk& walk, float* sums, const Meanwhile& meanwhile = {}) {
  if (two_rows && two_tiles) return tile_block<integer, 2, 2>(walk, sums, meanwhile);
  if (two_rows) return tile_block<integer, 2, 1>(walk, sums, meanwhile);
  if (two_tiles) return tile_block<integer, 1, 2>(walk, sums, meanwhile);
  tile_block<integer, 1, 1>(walk, sums, meanwhile);
}

// Outputs that no cache will hold until they are read go past all of them: a line that is written whole need not be
// read first.
inline bool streams(const Product& product) {
  constexpr int64_t kHeld = 1 << 20;
  return product.finish != Finish::add && product.into.values == nullptr && product.n_rows * product.out_stride * 4 > kHeld &&
         product.out_stride % 16 == 0 && reinterpret_cast<uintptr_t>(product.out) % 64 == 0;
}

// Puts values (i, j) of rows [row, row + count) and `n` tiles where they belong; see Sink, which does it one by one.
template <class Value>
inline void put_block(const Product& product, int64_t row, int64_t count, int64_t tile, int64_t n, Value&& value) {
  const Linear& linear = *product.linear;
  float* out = product.out + row * product.out_stride;
  const int64_t stride = product.out_stride;
  const bool past = streams(product);
  const auto put = [&](float* to, f32x16 x) { past ? _mm512_stream_ps(to, (__m512)x) : store16(to, x); };
  if (product.finish == Finish::gate && linear.bias == nullptr) {
    if (product.into.values != nullptr) {
      for (int64_t i = 0; i < count; ++i)
        put_input(product.into, row + i, tile / 2 * kTile, gated(value(i, 0), value(i, 1), product.activation));
      return;
    }
    out += tile / 2 * kTile;
    for (int64_t i = 0; i < count; ++i) put(out + i * stride, gated(value(i, 0), value(i, 1), product.activation));
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
      if (add) store16(to, load16(to) + value(i, j));
      else put(to, value(i, j));
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

// Sums that are handed on while the tiles work on those that come next.
class Waiting {
 public:
  explicit Waiting(const Product& product) : product_(product) {}

  void put(const float* sums, int64_t row, int64_t count, int64_t tile, int64_t n) {
    finish(left_);
    sums_ = sums, row_ = row, left_ = count, tile_ = tile, n_ = n;
  }
  // Hands on `rows` of them, or as many as are left.
  void finish(int64_t rows) {
    const int64_t count = rows < left_ ? rows : left_;
    if (count == 0) return;
    finish_block(product_, sums_, row_, count, tile_, n_);
    sums_ += count * 32, row_ += count, left_ -= count;
  }
  void finish() { finish(left_); }
  // Where a place for sums is free, of two: these take turns.
  int64_t place() { return place_ ^= 1; }

 private:
  const Product& product_;
  const float* sums_ = nullptr;
  int64_t row_ = 0, left_ = 0, tile_ = 0, n_ = 0, place_ = 0;
};

// Some blocks of one or two tiles of weights, by all rows.
struct Panel {
  const char* weights;
  int64_t weight_tile;         // Bytes from one tile to the next.
  int64_t first, blocks;       // Which blocks of inputs these are.
  const char* next = nullptr;  // The panel after it, if that comes from far away.
};

// While rows go by, the next panel comes in: each pair of row tiles asks for its share. `sums` has a place [32][32] for
// each pair, or (`sums_stride` 0) two for all where a panel has all blocks. `meanwhile` is what vectors do while the first pair
// goes by.
template <bool integer, class Meanwhile = Idle>
inline void multiply_panel(const Product& product, const Panel& panel, int64_t tile, int64_t n, int64_t row, int64_t count,
                           float* sums, int64_t sums_stride, Waiting& waiting, const Meanwhile& meanwhile = {}) {
  constexpr int64_t rows_at_once = 4;
  const int64_t pairs = ceil_div(count, 2 * kTile), each = ceil_div(16, pairs);
  const int64_t pause = panel.blocks / (2 * kTile / rows_at_once) + (panel.blocks < 2 * kTile / rows_at_once);
  const bool last = panel.first + panel.blocks >= product.rows.blocks;
  Walk walk{nullptr, panel.weights, panel.blocks * 1024, panel.weight_tile, panel.blocks, panel.first > 0};
  walk.near = true;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t at = row + pair * 32, here = row + count - at < 32 ? row + count - at : 32;
    float* const own = sums + (sums_stride == 0 ? waiting.place() * 1024 : pair * sums_stride);
    walk.rows = product.rows.at(at, panel.first);
    walk.next_lines = panel.next == nullptr || pair * each >= 16 ? 0 : 16 - pair * each < each ? 16 - pair * each : each;
    walk.next = panel.next + pair * each * 64;
    if (last && product.finish == Finish::add && here == 32 && (tile + n) * kTile <= product.linear->n) {
      walk.add_to = product.out + at * product.out_stride + tile * kTile;
      walk.add_stride = product.out_stride;
    }
    const auto hand_on = [&](int64_t block) {
      if ((block + 1) % pause == 0) waiting.finish(rows_at_once);
    };
    if (pair == 0)
      any_block<integer>(here > kTile, n == 2, walk, own, [&](int64_t block, int64_t part) {
        meanwhile(block, part);
        if (part == 1) hand_on(block);
      });
    else
      any_block<integer>(here > kTile, n == 2, walk, own, [&](int64_t block, int64_t part) {
        if (part == 1) hand_on(block);
      });
    if (last) waiting.put(own, at, here, tile, n);
  }
}

// Aligned memory of this thread that lives on.
inline char* own_scratch(size_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local size_t held = 0;
  if (bytes + 64 > held) {
    memory.reset(new char[bytes + 64]);
    held = bytes + 64;
  }
  return memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
}

// At most two tiles of rows: the weights stream by.
template <bool integer>
inline void multiply_streamed(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Linear& linear = *product.linear;
  alignas(64) float sums[32 * 32];
  for (int64_t tile = first; tile < last; tile += 2) {
    const int64_t n = last - tile >= 2 ? 2 : 1;
    Walk walk{product.rows.at(row, 0), linear.tile(tile), linear.tile_bytes(), linear.tile_bytes(),
              linear.blocks(),               false};
    walk.next = walk.weights + kStream;
    walk.next_lines = 16;
    any_block<integer>(count > kTile, n == 2, walk, sums);
    finish_block(product, sums, row, count, tile, n);
  }
}

// Sums of a unit of work, [pair of weight tiles][pair of row tiles][32][32], which wait for the next panel as they are:
// panels change no result. Where one panel has all inputs, two places serve all.
struct Sums {
  int64_t pair, stride;  // Floats from one pair of weight tiles, and of row tiles, to the next.

  Sums(const Product& product, int64_t count)
      : stride(product.rows.depth == product.rows.blocks ? 0 : 32 * 32) {
    pair = stride * ceil_div(count, 2 * kTile);
  }
  size_t bytes(int64_t tiles) const {
    return static_cast<size_t>(pair * ceil_div(tiles, 2) + (stride == 0 ? 2 * 32 * 32 : 0)) * 4;
  }
};

template <bool integer>
inline void multiply_tiles(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  if (product.n_rows <= kFewRows) return multiply_streamed<integer>(product, first, last, row, count);
  const Linear& linear = *product.linear;
  const Rows& rows = product.rows;
  const Sums layout(product, count);
  float* const sums = reinterpret_cast<float*>(own_scratch(layout.bytes(last - first)));
  Waiting waiting(product);
  for (int64_t from = 0; from < rows.blocks; from += rows.depth)
    for (int64_t tile = first; tile < last; tile += 2) {
      Panel panel{linear.tile(tile) + from * 1024, linear.tile_bytes(), from, rows.width(from)};
      panel.next = tile + 2 < last || from + rows.depth >= rows.blocks ? linear.tile(tile + 2) + from * 1024
                                                                      : linear.tile(first) + (from + rows.depth) * 1024;
      multiply_panel<integer>(product, panel, tile, last - tile >= 2 ? 2 : 1, row, count,
                              sums + (tile - first) / 2 * layout.pair, layout.stride, waiting);
    }
  waiting.finish();
}

}  // namespace sash::SASH_ISA

#endif
