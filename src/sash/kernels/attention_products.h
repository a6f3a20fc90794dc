// The two products of attention, and their interleaving with the softmax.
#pragma once

#include "attention_softmax.h"

namespace sash::SASH_ISA {

#if defined(__AMX_TILE__)

// Up to 2 x 2 tiles in memory, all distances in bytes. Accumulator 2 * down + right stands for each.
struct TileBlock {
  char* at = nullptr;
  int64_t down = 0, right = 0, row = 0;
  int n_down = 0, n_right = 0;
  char* tile(int accumulator) const { return at + accumulator / 2 * down + accumulator % 2 * right; }
};
inline void store_tiles(const TileBlock& block) {
  tile_store<0>(block.tile(0), block.row);
  if (block.n_right > 1) tile_store<1>(block.tile(1), block.row);
  if (block.n_down < 2) return;
  tile_store<2>(block.tile(2), block.row);
  if (block.n_right > 1) tile_store<3>(block.tile(3), block.row);
}

// An accumulator leaves one block and takes up another of the same shape.
template <int tile, bool accumulate>
inline void turn_over(const TileBlock& held, const TileBlock& next) {
  if (held.at) tile_store<tile>(held.tile(tile), held.row);
  if (accumulate)
    tile_load<tile>(next.tile(tile), next.row);
  else
    tile_zero<tile>();
}

struct Operands {
  const char *a, *b;
  int64_t a_down, a_step;   // From a tile of rows to the next, from a step of depth to the next.
  int64_t b_right, b_step;
  int64_t depth;
};

// Accumulators = (c where `accumulate`) + a b, for n_down x n_right tiles; `between` is called after every two products.
// `held` is what the accumulators hold from before: each is stored just before it is used anew, so that no store has to
// wait for its own products.
template <int n_down, int n_right, bool accumulate, class Between>
SASH_INLINE void multiply(const Operands& x, const TileBlock& held, const TileBlock& c, Between&& between) {
  const char *a = x.a, *b = x.b;
  for (int64_t step = 0; step < x.depth; ++step, a += x.a_step, b += x.b_step) {
    tile_load<4>(a);
    tile_load<6>(b);
    if (step == 0) turn_over<0, accumulate>(held, c);
    tile_dot_bf16<0, 4, 6>();
    if (n_right > 1) {
      tile_load<7>(b + x.b_right);
      if (step == 0) turn_over<1, accumulate>(held, c);
      tile_dot_bf16<1, 4, 7>();
    }
    between();
    if (n_down > 1) {
      tile_load<5>(a + x.a_down);
      if (step == 0) turn_over<2, accumulate>(held, c);
      tile_dot_bf16<2, 5, 6>();
      if (n_right > 1) {
        if (step == 0) turn_over<3, accumulate>(held, c);
        tile_dot_bf16<3, 5, 7>();
      }
      between();
    }
  }
}

// Pairs of query tiles meet blocks of keys. While tiles make the scores of one block, vectors make weights of the block
// before the last; both share a port, so they only overlap where they alternate closely. Once a pair has the weights of
// all its blocks of a group, tiles add up the values.
class Pipeline {
 public:
  explicit Pipeline(Scratch& scratch) : scratch_(scratch) {}

  void push(const Item& item) {
    item.n_rows > 16 ? push<2>(item) : push<1>(item);
    weighed();
    ready_ = held_;
    held_ = item;
    odd_ = !odd_;
  }
  // The values of a pair whose weights are made elsewhere.
  void add(const Item& item) {
    ready_ = item;
    weighed();
    ready_ = Item();
  }
  void flush() {
    for (int i = 0; i < 2; ++i) {
      settle();
      if (ready_.n_rows > 0) Softmax(scratch_, ready_, scratch_.scores[odd_]).finish();
      weighed();
      ready_ = held_;
      held_ = Item();
      odd_ = !odd_;
    }
  }

 private:
  template <int n_tiles>
  void push(const Item& item) {
    if (in_tiles_.n_down != n_tiles) settle();
    Softmax softmax(scratch_, ready_, scratch_.scores[odd_]);
    if (ready_.n_rows < 4 || ready_.masked)
      multiply_scores<n_tiles>(item, [] {});
    else
      scratch_.scaled[ready_.block] ? push_both<n_tiles, true>(item, softmax) : push_both<n_tiles, false>(item, softmax);
    softmax.finish();
  }

  template <int n_tiles, bool scaled>
  void push_both(const Item& item, Softmax& softmax) {
    const int32_t pace = static_cast<int32_t>((ready_.n_rows << 16) / (scratch_.steps * n_tiles)) + 1;
    int32_t due = 0;
    multiply_scores<n_tiles>(item, [&]() __attribute__((always_inline)) {
      for (due += pace; due >= 4 << 16 && softmax.left() >= 4; due -= 4 << 16) softmax.four_rows<scaled>();
    });
  }

  // The scores of the block before leave their accumulators first thing.
  template <int n_tiles, class Between>
  SASH_INLINE void multiply_scores(const Item& item, Between&& between) {
    const int64_t tile = scratch_.steps * 1024, row = kKeyBlock * 4;
    const Operands x{reinterpret_cast<const char*>(scratch_.q) + item.pair * 2 * tile,
                     reinterpret_cast<const char*>(scratch_.k_block(item.block)), tile, 1024, tile, 1024, scratch_.steps};
    const TileBlock scores{reinterpret_cast<char*>(scratch_.scores[odd_]), 16 * row, 64, row, n_tiles, 2};
    multiply<n_tiles, 2, false>(x, in_tiles_, scores, between);
    in_tiles_ = scores;
  }

  void weighed() {
    if (ready_.count == 0) return;
    correct_sums(scratch_, ready_.pair);
    ready_.n_rows > 16 ? add_values<2>() : add_values<1>();
  }

  // o += weights v, by pairs of columns of tiles.
  template <int n_tiles>
  void add_values() {
    const int64_t cols = scratch_.cols, block = ready_.block + 1 - ready_.count;
    const auto nothing = [] {};
    const auto operands = [&](int64_t col) {
      return Operands{reinterpret_cast<const char*>(scratch_.weights_row(block, 0)),
                      reinterpret_cast<const char*>(scratch_.v_tile(col, block)), 1024, 2048, 1024,
                      scratch_.v_step(col) * 2, ready_.count};
    };
    TileBlock o{reinterpret_cast<char*>(scratch_.o_tile(2 * ready_.pair)), cols * 1024, 1024, 64, n_tiles, 2};
    if (in_tiles_.n_down != n_tiles) settle();
    for (int64_t col = 0; col + 2 <= cols; col += 2, o.at += 2048) {
      multiply<n_tiles, 2, true>(operands(col), in_tiles_, o, nothing);
      in_tiles_ = o;
    }
    settle();
    if (cols % 2 == 0) return;
    o.n_right = 1;
    multiply<n_tiles, 1, true>(operands(cols - 1), in_tiles_, o, nothing);
    in_tiles_ = o;
    settle();
  }

  void settle() {
    if (in_tiles_.at) store_tiles(in_tiles_);
    in_tiles_.at = nullptr;
  }

  Scratch& scratch_;
  Item ready_, held_;   // Next to be weighed; next after that, whose scores may still be in accumulators.
  TileBlock in_tiles_;  // What accumulators hold.
  bool odd_ = false;
};

#else

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRowsAtOnce = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRowsAtOnce = 4;
#else
constexpr int kLanes = 4, kRowsAtOnce = 2;
#endif
typedef float lanes __attribute__((vector_size(4 * kLanes)));

inline lanes multiply_add(float a, lanes b, lanes c) {
#if defined(__AVX512F__)
  return (lanes)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (lanes)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// c[row][16] += sum over k of a[row][k] * b[k][16] for a few rows, in ascending k.
inline void product(const float* a, int64_t a_stride, int64_t count, const float* b, float* c, int64_t c_stride) {
  constexpr int n = 16 / kLanes;
  lanes sum[kRowsAtOnce][n];
  std::memset(sum, 0, sizeof sum);
  for (int64_t k = 0; k < count; ++k, b += 16)
    for (int i = 0; i < n; ++i) {
      lanes column;
      std::memcpy(&column, b + i * kLanes, sizeof column);
      for (int row = 0; row < kRowsAtOnce; ++row) sum[row][i] = multiply_add(a[row * a_stride + k], column, sum[row][i]);
    }
  for (int row = 0; row < kRowsAtOnce; ++row)
    for (int i = 0; i < n; ++i) {
      lanes old;
      std::memcpy(&old, c + row * c_stride + i * kLanes, sizeof old);
      old += sum[row][i];
      std::memcpy(c + row * c_stride + i * kLanes, &old, sizeof old);
    }
}

class Pipeline {
 public:
  explicit Pipeline(Scratch& scratch) : scratch_(scratch) {}

  void push(const Item& item) {
    const int64_t dims = scratch_.head_dim;
    float* const scores = scratch_.scores[0];
    std::memset(scores, 0, kQueryPair * kKeyBlock * 4);
    for (int64_t tile = 0; tile < 2; ++tile)
      for (int64_t row = 0; row < item.n_rows; row += kRowsAtOnce)
        product(scratch_.q + (item.pair * kQueryPair + row) * dims, dims, dims,
                scratch_.k_block(item.block) + tile * 16 * dims, scores + row * kKeyBlock + tile * 16, kKeyBlock);
    Softmax(scratch_, item, scores).finish();
    if (item.count == 0) return;
    correct_sums(scratch_, item.pair);
    for (int64_t block = item.block + 1 - item.count; block <= item.block; ++block)
      for (int64_t col = 0; col < scratch_.cols; ++col)
        for (int64_t row = 0; row < item.n_rows; row += kRowsAtOnce)
          product(scratch_.weights_row(block, row), kKeyBlock, kKeyBlock, scratch_.v_block(block) + col * kKeyBlock * 16,
                  scratch_.o_tile(2 * item.pair + row / 16) + col * 256 + row % 16 * 16, 16);
  }
  void flush() {}

 private:
  Scratch& scratch_;
};

#endif

}  // namespace sash::SASH_ISA
