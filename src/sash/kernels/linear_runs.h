// Which tiles of weights are read side by side, and which rows share a line of them, where vectors multiply.
#pragma once

#include "linear_isa.h"

namespace sash::SASH_ISA {

// Outputs of `s` runs of `count` tiles from `tile` on, `apart` tiles from each other, for rows [row, row + n).
template <int64_t n, int64_t s>
inline void multiply_streams(const Product& product, int64_t tile, int64_t count, int64_t apart, int64_t row) {
  const Sink sink{product};
  f32x16 even[s][n] = {}, out[s * n];
  for (int64_t t = tile; t < tile + count; ++t) {
    tiles_rows<n, s>(product, t, apart, row, out);
    for (int64_t j = 0; j < s; ++j)
      for (int64_t i = 0; i < n; ++i) sink.put(row + i, t + j * apart, out[j * n + i], even[j][i]);
  }
}

// Cuts tiles [first, last) into runs of equal length, as many as are read side by side; then what is left. `body` is called
// with their number, as a constant, the first tile and the tiles of each.
template <class Body>
inline void each_runs(const Product& product, int64_t first, int64_t last, Body&& body) {
  const int64_t whole = product.finish == Finish::gate ? 2 : 1;
  const auto cut = [&](auto runs) {
    const int64_t count = (last - first) / runs / whole * whole;
    if (count > 0) body(runs, first, count);
    first += runs * count;
  };
  if constexpr (kStreams >= 4) cut(std::integral_constant<int64_t, 4>());
  if constexpr (kStreams >= 2) cut(std::integral_constant<int64_t, 2>());
  cut(std::integral_constant<int64_t, 1>());
}

// `n` rows, so few that sums of several tiles fit the registers.
template <int64_t n>
inline void multiply_by_runs(const Product& product, int64_t first, int64_t last, int64_t row) {
  each_runs(product, first, last, [&](auto runs, int64_t tile, int64_t count) {
    multiply_streams<n, runs>(product, tile, count, count, row);
  });
}

// Outputs of tiles [first, last) for rows [row, row + count): `first` and `last` are even for gated pairs.
inline void multiply_by_vectors(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  if (count == 1) return multiply_by_runs<1>(product, first, last, row);
  if (count == 2) return multiply_by_runs<2>(product, first, last, row);
  const Sink sink{product};
  constexpr int64_t kTogether = 16;  // Rows that go by while a tile of weights is near.
  f32x16 even[kTogether], out[kRows];
  for (int64_t from = row; from < row + count; from += kTogether) {
    const int64_t upto = from + kTogether < row + count ? from + kTogether : row + count;
    for (int64_t tile = first; tile < last; ++tile)
      for (int64_t at = from; at < upto;) {
        const int64_t n = upto - at >= kRows ? kRows : upto - at >= 4 ? 4 : upto - at >= 2 ? 2 : 1;
        if (n == kRows) tiles_rows<kRows, 1>(product, tile, 0, at, out);
        else if (n == 4) tiles_rows<4, 1>(product, tile, 0, at, out);
        else if (n == 2) tiles_rows<2, 1>(product, tile, 0, at, out);
        else tiles_rows<1, 1>(product, tile, 0, at, out);
        for (int64_t i = 0; i < n; ++i) sink.put(at + i, tile, out[i], even[at + i - from]);
        at += n;
      }
  }
}

// kRuns runs of `count` tiles, `apart` tiles from each other, by all rows.
inline void multiply_runs_by_vectors(const Product& product, int64_t tile, int64_t count, int64_t apart) {
  if constexpr (kStreams == kRuns) {
    if (product.n_rows == 1) return multiply_streams<1, kRuns>(product, tile, count, apart, 0);
    if (product.n_rows == 2) return multiply_streams<2, kRuns>(product, tile, count, apart, 0);
  }
  for (int64_t run = 0; run < kRuns; ++run, tile += apart) multiply_by_vectors(product, tile, tile + count, 0, product.n_rows);
}

}  // namespace sash::SASH_ISA
