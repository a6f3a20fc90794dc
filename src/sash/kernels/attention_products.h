// The two products of attention, and their interleaving with the softmax.
#pragma once

#include "attention_softmax.h"

namespace sash::SASH_ISA {

#if defined(__AMX_TILE__)

// Items pass three stages: scores (tiles), softmax (vectors), sums of values (tiles). Each step runs the scores of one
// item and the sums of another while the softmax of a third goes on between them: tile products are issued a few at a
// time between rows of softmax, so that the processor keeps both units busy.
class Pipeline {
 public:
  Pipeline(Scratch& scratch, const AttentionTask& task) : scratch_(scratch), task_(task) {}

  void push(const Item& next) {
    Scratch::Stage &ahead = scratch_.stages[odd_], &behind = scratch_.stages[!odd_];
    Softmax softmax(scratch_, task_, current_, behind);
    const int64_t half = current_.n_rows / 2;
    if (next.pair >= 0)
      next.n_rows > 16 ? scores<2>(next, ahead, softmax, half) : scores<1>(next, ahead, softmax, half);
    softmax.advance(half);
    // `ahead` still holds the weights of the item before.
    if (previous_.pair >= 0) {
      correct(scratch_, previous_.pair, ahead);
      previous_.n_rows > 16 ? sums<2>(previous_, ahead, softmax, half) : sums<1>(previous_, ahead, softmax, half);
    }
    softmax.advance(current_.n_rows);
    previous_ = current_;
    current_ = next;
    odd_ = !odd_;
  }
  void flush() {
    push(Item());
    push(Item());
  }

 private:
  // s = q k^T in blocks of 2 x 2 tiles.
  template <int n_tiles>
  void scores(const Item& item, const Scratch::Stage& stage, Softmax& softmax, int64_t n_soft) const {
    const int64_t steps = scratch_.steps;
    const element* const q = scratch_.q + item.pair * 2 * steps * 512;
    const element* k = scratch_.k_block(item.slot);
    for (int64_t part = 0; part < 2; ++part, k += 2 * steps * 512) {
      tile_zero<0>();
      tile_zero<1>();
      if (n_tiles > 1) {
        tile_zero<2>();
        tile_zero<3>();
      }
      for (int64_t step = 0; step < steps; ++step) {
        tile_load<4>(q + step * 512);
        tile_load<6>(k + step * 512);
        tile_dot_bf16<0, 4, 6>();
        tile_load<7>(k + (steps + step) * 512);
        tile_dot_bf16<1, 4, 7>();
        if (n_tiles > 1) {
          tile_load<5>(q + (steps + step) * 512);
          tile_dot_bf16<2, 5, 6>();
          tile_dot_bf16<3, 5, 7>();
        }
        softmax.advance((part * steps + step + 1) * n_soft / (2 * steps));
      }
      float* const s = stage.s + part * 32;
      tile_store<0>(s, kKeyBlock * 4);
      tile_store<1>(s + 16, kKeyBlock * 4);
      if (n_tiles > 1) {
        tile_store<2>(s + 16 * kKeyBlock, kKeyBlock * 4);
        tile_store<3>(s + 16 * kKeyBlock + 16, kKeyBlock * 4);
      }
    }
  }

  // o += p v, a column of tiles at a time.
  template <int n_tiles>
  void sums(const Item& item, const Scratch::Stage& stage, Softmax& softmax, int64_t n_soft) const {
    const int64_t cols = scratch_.cols;
    const element* const v = scratch_.v_block(item.slot);
    float* const o = scratch_.o_tile(2 * item.pair);
    float* const o2 = o + cols * 256;
    tile_load<0>(stage.p);
    tile_load<1>(stage.p + 512);
    if (n_tiles > 1) {
      tile_load<2>(stage.p + 1024);
      tile_load<3>(stage.p + 1536);
    }
    for (int64_t col = 0; col < cols; ++col) {
      tile_load<6>(v + col * 512);
      tile_load<4>(o + col * 256);
      tile_dot_bf16<4, 0, 6>();
      tile_load<7>(v + (cols + col) * 512);
      if (n_tiles > 1) {
        tile_load<5>(o2 + col * 256);
        tile_dot_bf16<5, 2, 6>();
      }
      tile_dot_bf16<4, 1, 7>();
      if (n_tiles > 1) tile_dot_bf16<5, 3, 7>();
      softmax.advance(n_soft + (col + 1) * (kQueryPair - n_soft) / cols);
      tile_store<4>(o + col * 256);
      if (n_tiles > 1) tile_store<5>(o2 + col * 256);
    }
  }

  Scratch& scratch_;
  const AttentionTask& task_;
  Item current_, previous_;
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

// The same stages one after the other.
class Pipeline {
 public:
  Pipeline(Scratch& scratch, const AttentionTask& task) : scratch_(scratch), task_(task) {}

  void push(const Item& item) {
    Scratch::Stage& stage = scratch_.stages[0];
    const int64_t dims = scratch_.head_dim;
    std::memset(stage.s, 0, kQueryPair * kKeyBlock * 4);
    for (int64_t tile = 0; tile < 4; ++tile)
      for (int64_t row = 0; row < item.n_rows; row += kRowsAtOnce)
        product(scratch_.q + (item.pair * kQueryPair + row) * dims, dims, dims,
                scratch_.k_block(item.slot) + tile * 16 * dims, stage.s + row * kKeyBlock + tile * 16, kKeyBlock);
    Softmax(scratch_, task_, item, stage).advance(item.n_rows);
    correct(scratch_, item.pair, stage);
    for (int64_t col = 0; col < scratch_.cols; ++col)
      for (int64_t row = 0; row < item.n_rows; row += kRowsAtOnce)
        product(stage.p + row * kKeyBlock, kKeyBlock, kKeyBlock, scratch_.v_block(item.slot) + col * kKeyBlock * 16,
                scratch_.o_tile(2 * item.pair + row / 16) + col * 256 + row % 16 * 16, 16);
  }
  void flush() {}

 private:
  Scratch& scratch_;
  const AttentionTask& task_;
};

#endif

}  // namespace sash::SASH_ISA
