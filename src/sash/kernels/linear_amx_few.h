// Products of at most a tile of rows on the matrix tiles, as in decoding: what counts is to read weights as fast as memory
// gives them.
#pragma once

#include "linear_amx.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

// Sum `j` += rows in tile 4 times a block of weights.
template <bool integer, int j>
inline void add_few(const char* weights) {
  tile_load<5 + j % 2>(weights);
  tile_dot<integer, j, 4, 5 + j % 2>();
}

// One tile of each of `s` runs: their products with the rows go to `sums`, [run][16][32], from column `from` on.
template <bool integer, int64_t s>
inline void multiply_few_tiles(const char* rows, const Streams<s>& weights, int64_t blocks, float* sums) {
  tile_zero<0>();
  if (s > 1) tile_zero<1>();
  if (s > 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = 0; j < s; ++j)
      for (int64_t at = 0; at < 1024; at += 64) weights.ask(j, block * 1024 + at);
    tile_load<4>(rows + block * 1024);
    add_few<integer, 0>(weights.at(0, block * 1024));
    if (s > 1) add_few<integer, 1>(weights.at(1, block * 1024));
    if (s > 2) add_few<integer, 2>(weights.at(2, block * 1024)), add_few<integer, 3>(weights.at(3, block * 1024));
  }
  tile_store<0>(sums, 128);
  if (s > 1) tile_store<1>(sums + 512, 128);
  if (s > 2) tile_store<2>(sums + 1024, 128), tile_store<3>(sums + 1536, 128);
}

// `s` runs of `length` tiles from `tile` on, `apart` tiles from each other, by rows [row, row + count). `body` is called with
// the tiles of the first run one by one, and where the sums go.
template <int64_t s, class Body>
inline void few_runs(const Product& product, int64_t tile, int64_t length, int64_t apart, int64_t row, int64_t count,
                     Body&& body) {
  alignas(64) float sums[s][16 * 32];
  for (int64_t t = 0; t < length; ++t) {
    const int64_t second = t % 2;  // Tiles are handed on in pairs, since gated ones belong together.
    body(tile + t, sums[0] + second * kTile);
    if (!second && t + 1 < length) continue;
    for (int64_t j = 0; j < s; ++j)
      finish_block(product, sums[j], row, count, tile + j * apart + t - second, 1 + second);
  }
}

template <bool integer, int64_t s>
inline void multiply_few_runs(const Product& product, int64_t tile, int64_t length, int64_t apart, int64_t row,
                              int64_t count) {
  const Linear& linear = *product.linear;
  const char* rows = product.rows.at(row, 0);
  few_runs<s>(product, tile, length, apart, row, count, [&](int64_t at, float* sums) {
    multiply_few_tiles<integer, s>(rows, {linear, at, apart}, linear.blocks(), sums);
  });
}

template <bool integer>
inline void multiply_few(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  each_runs(product, first, last, [&](auto runs, int64_t tile, int64_t length) {
    multiply_few_runs<integer, runs>(product, tile, length, length, row, count);
  });
}

}  // namespace sash::SASH_ISA

#endif
