// Products on the matrix tiles with int4 weights whose groups have integer multipliers: each is an int8 weight, unpacked while
// the tiles work.
#pragma once

#include "linear_amx.h"
#include "linear_amx_few.h"

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

// How a group's nibbles q of sixteen outputs become (q - 8) * multiplier, m for short. Two bytes are multiplied at once, as one
// number of 16 bits, so no product may be negative: where m is, q is turned to 15 - q, since (q - 8) m = ((15 - q) - 7) |m|.
struct Multipliers {
  __m512i flip;  // 15 where m is negative: one a byte, as in `less`.
  __m512i by;    // |m|, one in 16 bits.
  __m512i less;  // 8 |m|, or 7 |m| where m is negative.

  explicit Multipliers(const int8_t* from) {
    const __m512i m = (__m512i)load16_i8(from), negative = _mm512_srai_epi32(m, 31), size = _mm512_abs_epi32(m);
    // Four bytes in a row belong to one output.
    const __m512i spread = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    flip = _mm512_and_si512(negative, _mm512_set1_epi8(15));
    by = _mm512_or_si512(size, _mm512_slli_epi32(size, 16));
    less = _mm512_shuffle_epi8(_mm512_add_epi32(_mm512_slli_epi32(size, 3), _mm512_and_si512(m, negative)), spread);
  }
  // Of the lower halves of bytes.
  __m512i operator()(__m512i nibbles) const {
    constexpr int kAndXor = 0x6a;  // (a & b) ^ c.
    const __m512i q = _mm512_ternarylogic_epi32(nibbles, _mm512_set1_epi8(15), flip, kAndXor);
    return _mm512_sub_epi8(_mm512_mullo_epi16(q, by), less);
  }
};

// Int4 weights with multipliers, `halves` groups in 64 inputs, as the int8 weights that they stand for: one block of 64 inputs
// by 16 outputs.
template <int64_t halves>
inline __attribute__((always_inline)) void unpack_multiplied(const Linear& linear, int64_t tile, int64_t block, char* to) {
  constexpr int64_t ahead = 2048;
  const char* line = linear.tile(tile) + block * 512;
  const int8_t* from = linear.multiplier + (tile * linear.groups() + block * halves) * kTile;
  const Multipliers first(from), second = halves == 1 ? first : Multipliers(from + kTile);
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; ++j, line += 64, to += 64) {
    prefetch_far(line + ahead);
    const __m512i both = _mm512_loadu_si512(line);
    _mm512_store_si512(to, first(both));
    _mm512_store_si512(to + 512, second(_mm512_srli_epi16(both, 4)));
  }
}

// One tile of each of `s` runs: their products with at most a tile of rows go to `sums`, [run][16][32], from column `from` on.
// Between the products of two tiles of weights vectors unpack a third, which belongs to the next block: the processor does
// both at once where it need not look far ahead for the other.
template <int64_t halves, int64_t s>
inline void multiply_few_multiplied(const char* rows, const Linear& linear, int64_t tile, int64_t apart, float* sums) {
  alignas(64) char unpacked[2][s][1024];
  const int64_t last = linear.blocks() - 1;
  const auto unpack = [&](int64_t block, auto j) {
    unpack_multiplied<halves>(linear, tile + j * apart, block, unpacked[block % 2][j]);
  };
  each<s>([&](auto j) { unpack(0, j); });
  tile_zero<0>();
  if (s > 1) tile_zero<1>();
  if (s > 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t block = 0; block < last; ++block) {
    tile_load<4>(rows + block * 1024);
    each<s>([&](auto j) {
      add_few<true, j>(unpacked[block % 2][j]);
      unpack(block + 1, j);
    });
  }
  tile_load<4>(rows + last * 1024);
  each<s>([&](auto j) { add_few<true, j>(unpacked[last % 2][j]); });
  tile_store<0>(sums, 128);
  if (s > 1) tile_store<1>(sums + 512, 128);
  if (s > 2) tile_store<2>(sums + 1024, 128), tile_store<3>(sums + 1536, 128);
}

// The same of `length` tiles of each run.
template <int64_t halves, int64_t s>
inline void multiply_few_multiplied_runs(const Product& product, int64_t tile, int64_t length, int64_t apart, int64_t row,
                                         int64_t count) {
  const char* rows = product.rows.at(row, 0);
  few_runs<s>(product, tile, length, apart, row, count, [&](int64_t at, float* sums) {
    multiply_few_multiplied<halves, s>(rows, *product.linear, at, apart, sums);
  });
}

// The first pair of row tiles meets weights that are unpacked while the tiles work, a few blocks ahead; the others find
// them in the second-level cache.
template <int64_t halves>
inline void multiply_multiplied_tiles(const Product& product, int64_t first, int64_t last, int64_t row,
                                      int64_t count) {
  constexpr int64_t ahead = 2;
  const Linear& linear = *product.linear;
  const Rows& rows = product.rows;
  const Sums layout(product, count);
  const int64_t panel_bytes = rows.depth * 1024;
  char* const unpacked = own_scratch(static_cast<size_t>(2 * panel_bytes) + layout.bytes(last - first));
  float* const sums = reinterpret_cast<float*>(unpacked + 2 * panel_bytes);
  Waiting waiting(product);
  for (int64_t from = 0; from < rows.blocks; from += rows.depth)
    for (int64_t tile = first; tile < last; tile += 2) {
      const int64_t n = last - tile >= 2 ? 2 : 1, width = rows.width(from);
      const auto unpack = [&](int64_t block, int64_t j) {
        if (block < width && j < n)
          unpack_multiplied<halves>(linear, tile + j, from + block, unpacked + j * panel_bytes + block * 1024);
      };
      for (int64_t block = 0; block < ahead; ++block) unpack(block, 0), unpack(block, 1);
      multiply_panel<true>(product, {unpacked, panel_bytes, from, width}, tile, n, row, count,
                           sums + (tile - first) / 2 * layout.pair, layout.stride, waiting,
                           [&](int64_t block, int64_t j) { unpack(block + ahead, j); });
    }
  waiting.finish();
}

template <int64_t halves>
inline void multiply_multiplied(bool few, const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  if (!few) return multiply_multiplied_tiles<halves>(product, first, last, row, count);
  each_runs(product, first, last, [&](auto runs, int64_t tile, int64_t length) {
    multiply_few_multiplied_runs<halves, runs>(product, tile, length, length, row, count);
  });
}

}  // namespace sash::SASH_ISA

#endif
