// Products with packed weights by vectors: any instruction set, any number of rows. Tiles of weights are taken one after
// the other, and rows a few at a time, so that a line of weights that was unpacked serves them all.
#pragma once

#include "lines_isa.h"

namespace sash::SASH_ISA {

constexpr int64_t kRows = 8;          // Rows that share an unpacked line at most.
constexpr int64_t kAhead = 3072;      // Bytes of weights that are asked for ahead of use.

// act(gate) * up, both [16].
inline f32x16 gated(f32x16 gate, f32x16 up, Activation activation) {
  const f32x16 one = all16(1.0f);
  if (activation == Activation::silu) return gate / (one + exp2_16(gate * all16(-1.44269504f))) * up;
  // 0.5 g (1 + tanh(u)) = g / (1 + exp(-2u)), u = sqrt(2 / pi) (g + 0.044715 g^3).
  const f32x16 u = all16(0.797884561f) * (gate + all16(0.044715f) * gate * gate * gate);
  return gate / (one + exp2_16(u * all16(-2.88539008f))) * up;
}

// Puts sixteen inputs of the next product, from input `at` on, into its prepared rows.
inline void put_input(const Rows& into, int64_t row, int64_t at, f32x16 value) {
  store_bf16(reinterpret_cast<uint16_t*>(into.at(row, at / 32) + at % 32 * 2), value);
}

// Puts sixteen outputs of a row where they belong. For gated pairs the even tile waits in `even` for the odd one.
struct Sink {
  const Product& product;

  void put(int64_t row, int64_t tile, f32x16 value, f32x16& even) const {
    const Linear& linear = *product.linear;
    if (linear.bias != nullptr) value += load16(linear.bias + tile * kTile);
    float* out = product.out + row * product.out_stride;
    if (product.finish == Finish::gate) {
      if (tile % 2 == 0) {
        even = value;
        return;
      }
      const f32x16 whole = gated(even, value, product.activation);
      if (product.into.values != nullptr) put_input(product.into, row, tile / 2 * kTile, whole);
      else store16(out + tile / 2 * kTile, whole);
      return;
    }
    out += tile * kTile;
    const int64_t count = linear.n - tile * kTile;
    if (count >= kTile) {
      store16(out, product.finish == Finish::add ? load16(out) + value : value);
      return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = product.finish == Finish::add ? out[i] + value[i] : value[i];
  }
};

// Dot products of one tile of weights with rows [row, row + n), by the kind of weight.
template <int64_t n>
inline void tile_bf16(const Linear& linear, const char* weights, const Rows& rows, int64_t row, f32x16* out) {
  f32x16 sum[n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    for (int pair = 0; pair < 16; ++pair) {
      const char* line = weights + block * 1024 + pair * 64;
      prefetch(line + kAhead);
      f32x16 even, odd;
      line16(line, even, odd);
      for (int64_t i = 0; i < n; ++i) {
        uint16_t two[2];
        std::memcpy(two, x[i] + pair * 4, 4);
        sum[i] = fma16(even, all16(from_bf16(two[0])), sum[i]);
        sum[i] = fma16(odd, all16(from_bf16(two[1])), sum[i]);
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) out[i] = sum[i];
}

template <int64_t n>
inline void tile_int8(const Linear& linear, const char* weights, int64_t tile, const Rows& rows, int64_t row,
                      f32x16* out) {
  Quads sum[n], second[n];
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    for (int quad = 0; quad < 16; quad += 2) {
      const char* line = weights + block * 1024 + quad * 64;
      prefetch(line + kAhead);
      prefetch(line + kAhead + 64);
      const Line first = line8(line), next = line8(line + 64);
      for (int64_t i = 0; i < n; ++i) {
        multiply(sum[i], first, x[i] + quad * 4);
        multiply(second[i], next, x[i] + quad * 4 + 4);
      }
    }
  }
  const f32x16 scale = load16(linear.scale8 + tile * kTile);
  for (int64_t i = 0; i < n; ++i) {
    join(sum[i], second[i]);
    out[i] = as_float(sum[i].total(kShift, rows.sum[row + i])) * (all16(rows.scale[row + i]) * scale);
  }
}

// The minima's part of an int4 product: sum over groups of minimum * (scale * sum of activations).
inline f32x16 minima(const Linear& linear, int64_t tile, const Rows& rows, int64_t row) {
  const int64_t groups = linear.groups();
  const uint16_t* minimum = linear.minimum + tile * groups * kTile;
  f32x16 low = {};
  for (int64_t group = 0; group < groups; ++group)
    low = fma16(all16(rows.scaled_sum[Rows::index(groups, row, group)]), load16_f16(minimum + group * kTile), low);
  return low;
}

template <int64_t n>
inline void tile_int4(const Linear& linear, const char* weights, int64_t tile, const Rows& rows, int64_t row,
                      f32x16* out) {
  const int64_t groups = linear.groups(), halves = 64 / linear.group;
  const uint16_t* scales = linear.scale4 + tile * groups * kTile;
  f32x16 sum[n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    Quads low[n], high[n];
    for (int j = 0; j < 8; ++j) {
      const char* line = weights + block * 512 + j * 64;
      prefetch(line + kAhead);
      Line first, second;
      lines4(line, first, second);
      for (int64_t i = 0; i < n; ++i) {
        multiply(low[i], first, x[i] + j * 4);
        multiply(high[i], second, x[i] + j * 4 + 32);
      }
    }
    const int64_t group = block * halves;
    const f32x16 scale = load16_f16(scales + group * kTile);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = Rows::index(groups, row + i, group), after = at + kTile;
      if (halves == 1) {
        join(low[i], high[i]);
        sum[i] = fma16(as_float(low[i].total(8, rows.sum[at])), all16(rows.scale[at]) * scale, sum[i]);
        continue;
      }
      sum[i] = fma16(as_float(low[i].total(8, rows.sum[at])), all16(rows.scale[at]) * scale, sum[i]);
      const f32x16 next = load16_f16(scales + (group + 1) * kTile);
      sum[i] = fma16(as_float(high[i].total(8, rows.sum[after])), all16(rows.scale[after]) * next, sum[i]);
    }
  }
  for (int64_t i = 0; i < n; ++i) out[i] = linear.minimum ? sum[i] + minima(linear, tile, rows, row + i) : sum[i];
}

// The same with integer multipliers: all sums are of integers, so they are those of an int8 weight, (q - 8) * multiplier.
template <int64_t n>
inline void tile_multiplied(const Linear& linear, const char* weights, int64_t tile, const Rows& rows, int64_t row,
                            f32x16* out) {
  const int64_t groups = linear.groups(), halves = 64 / linear.group;
  const int8_t* multipliers = linear.multiplier + tile * groups * kTile;
  i32x16 sum[n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    Quads low[n], high[n];
    for (int j = 0; j < 8; ++j) {
      const char* line = weights + block * 512 + j * 64;
      prefetch(line + kAhead);
      Line first, second;
      lines4(line, first, second);
      for (int64_t i = 0; i < n; ++i) {
        multiply(low[i], first, x[i] + j * 4);
        multiply(high[i], second, x[i] + j * 4 + 32);
      }
    }
    const int64_t group = block * halves;
    const i32x16 multiplier = load16_i8(multipliers + group * kTile);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = Rows::index(groups, row + i, group);
      if (halves == 1) {
        join(low[i], high[i]);
        sum[i] += low[i].total(8, rows.sum[at]) * multiplier;
        continue;
      }
      sum[i] += low[i].total(8, rows.sum[at]) * multiplier;
      sum[i] += high[i].total(8, rows.sum[at + kTile]) * load16_i8(multipliers + (group + 1) * kTile);
    }
  }
  const f32x16 scale = load16(linear.scale8 + tile * kTile);
  for (int64_t i = 0; i < n; ++i) out[i] = as_float(sum[i]) * (all16(rows.scale[row + i]) * scale);
}

template <int64_t n>
inline void tile_rows(const Product& product, int64_t tile, int64_t row, f32x16* out) {
  const Linear& linear = *product.linear;
  const char* weights = linear.tile(tile);
  if (linear.kind == Kind::bf16) {
    tile_bf16<n>(linear, weights, product.rows, row, out);
  } else if (linear.kind == Kind::int8) {
    tile_int8<n>(linear, weights, tile, product.rows, row, out);
  } else if (linear.multiplier != nullptr) {
    tile_multiplied<n>(linear, weights, tile, product.rows, row, out);
  } else {
    tile_int4<n>(linear, weights, tile, product.rows, row, out);
  }
}

// Outputs of tiles [first, last) for rows [row, row + count): `first` and `last` are even for gated pairs.
inline void multiply_by_vectors(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count) {
  const Sink sink{product};
  constexpr int64_t kTogether = 16;  // Rows that go by while a tile of weights is near.
  f32x16 even[kTogether], out[kRows];
  for (int64_t from = row; from < row + count; from += kTogether) {
    const int64_t upto = from + kTogether < row + count ? from + kTogether : row + count;
    for (int64_t tile = first; tile < last; ++tile)
      for (int64_t at = from; at < upto;) {
        const int64_t n = upto - at >= kRows ? kRows : upto - at >= 4 ? 4 : upto - at >= 2 ? 2 : 1;
        if (n == kRows) tile_rows<kRows>(product, tile, at, out);
        else if (n == 4) tile_rows<4>(product, tile, at, out);
        else if (n == 2) tile_rows<2>(product, tile, at, out);
        else tile_rows<1>(product, tile, at, out);
        for (int64_t i = 0; i < n; ++i) sink.put(at + i, tile, out[i], even[at + i - from]);
        at += n;
      }
  }
}

}  // namespace sash::SASH_ISA
