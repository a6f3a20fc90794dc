// Products with packed weights by vectors: any instruction set, any number of rows. Tiles of weights are taken one after
// the other, and rows a few at a time, so that a line of weights that was unpacked serves them all.
#pragma once

#include <type_traits>
#include <utility>

#include "lines_isa.h"

namespace sash::SASH_ISA {

constexpr int64_t kRows = 8;          // Rows that share an unpacked line at most.
constexpr int64_t kAhead = 3072;      // Bytes of weights that are asked for ahead of use ...
constexpr int64_t kAheadOfEach = 1024;  // ... and of each run of them, where several are read side by side.
constexpr int64_t kBesideAhead = 256;  // The same of what lies beside them: scales, multipliers.
#if defined(__AVX512F__)
constexpr int64_t kStreams = 4;       // Runs at most.
#else
constexpr int64_t kStreams = 1;
#endif

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

// Tiles of weights that are read side by side. A core follows a run of lines ahead of time within a page of memory only, and
// waits for what it asks for itself a dozen lines at a time: several runs in different pages are what keeps memory busy.
template <int64_t s>
struct Streams {
  const char* base;
  int64_t apart;

  Streams(const Linear& linear, int64_t tile, int64_t tiles_apart)
      : base(linear.tile(tile)), apart(tiles_apart * linear.tile_bytes()) {}
  const char* at(int64_t stream, int64_t offset) const { return base + stream * apart + offset; }
  void ask(int64_t stream, int64_t offset) const { prefetch(at(stream, offset) + (s == 1 ? kAhead : kAheadOfEach)); }
  const char* line(int64_t stream, int64_t offset) const {
    ask(stream, offset);
    return at(stream, offset);
  }
};

// Calls `body` with each of 0 to n - 1 as a constant: arrays that are indexed by it live in registers.
template <class Body, int64_t... i>
inline __attribute__((always_inline)) void each_of(std::integer_sequence<int64_t, i...>, Body&& body) {
  (body(std::integral_constant<int64_t, i>()), ...);
}
template <int64_t n, class Body>
inline __attribute__((always_inline)) void each(Body&& body) {
  each_of(std::make_integer_sequence<int64_t, n>(), body);
}

// Matrix tiles take numbers too small to be normal for zeros. Where they serve, vectors that stand in for them do so too,
// as long as this lives: around a call, since compilers move arithmetic within a function past the register that says so.
struct LikeTiles {
#if defined(__AMX_TILE__)
  const unsigned held = _mm_getcsr();
  LikeTiles() { _mm_setcsr(held | 0x8040); }
  ~LikeTiles() { _mm_setcsr(held); }
#endif
};

// Dot products of `s` tiles of weights, `apart` tiles from each other, with rows [row, row + n), by the kind of weight:
// out[tile][row].

// In the order of a matrix tile: of each block of 32 inputs the even ones from zero on, the odd ones, and both together.
template <int64_t n, int64_t s>
__attribute__((noinline)) void tiles_bf16(const Linear& linear, int64_t tile, int64_t apart, const Rows& rows, int64_t row, f32x16* out) {
  const Streams<s> from(linear, tile, apart);
  f32x16 sum[s][n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    f32x16 even[s][n] = {}, odd[s][n] = {};
    for (int pair = 0; pair < 16; ++pair) {
      f32x16 first[n], second[n];
      each<n>([&](auto i) {
        int32_t two;
        std::memcpy(&two, x[i] + pair * 4, 4);
        pairs16(i32x16{} + two, first[i], second[i]);
      });
      each<s>([&](auto j) {
        f32x16 w_even, w_odd;
        i32x16 line;
        std::memcpy(&line, from.line(j, block * 1024 + pair * 64), 64);
        pairs16(line, w_even, w_odd);
        each<n>([&](auto i) {
          even[j][i] = fma16(w_even, first[i], even[j][i]);
          odd[j][i] = fma16(w_odd, second[i], odd[j][i]);
        });
      });
    }
    each<s>([&](auto j) { each<n>([&](auto i) { sum[j][i] += even[j][i] + odd[j][i]; }); });
  }
  each<s>([&](auto j) { each<n>([&](auto i) { out[j * n + i] = sum[j][i]; }); });
}

template <int64_t n, int64_t s>
inline void tiles_int8(const Linear& linear, int64_t tile, int64_t apart, const Rows& rows, int64_t row, f32x16* out) {
  const Streams<s> from(linear, tile, apart);
  Quads sum[s][n], second[s][n];
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    for (int quad = 0; quad < 16; quad += 2)
      each<s>([&](auto j) {
        const int64_t at = block * 1024 + quad * 64;
        const Line first = line8(from.line(j, at)), next = line8(from.line(j, at + 64));
        each<n>([&](auto i) {
          multiply(sum[j][i], first, x[i] + quad * 4);
          multiply(second[j][i], next, x[i] + quad * 4 + 4);
        });
      });
  }
  each<s>([&](auto j) {
    const f32x16 scale = load16(linear.scale8 + (tile + j * apart) * kTile);
    each<n>([&](auto i) {
      join(sum[j][i], second[j][i]);
      out[j * n + i] = as_float(sum[j][i].total(kShift, rows.sum[row + i])) * (all16(rows.scale[row + i]) * scale);
    });
  });
}

// Adds the minima's part of an int4 product: sum over groups of minimum * (scale * sum of activations).
template <int64_t n, int64_t s>
inline void add_minima(const Linear& linear, int64_t tile, int64_t apart, const Rows& rows, int64_t row, f32x16* out) {
  const int64_t groups = linear.groups();
  const uint16_t* minimum = linear.minimum + tile * groups * kTile;
  f32x16 low[s][n] = {};
  for (int64_t group = 0; group < groups; ++group)
    each<s>([&](auto j) {
      const f32x16 least = load16_f16(minimum + (j * apart * groups + group) * kTile);
      each<n>([&](auto i) {
        low[j][i] = fma16(all16(rows.scaled_sum[Rows::index(groups, row + i, group)]), least, low[j][i]);
      });
    });
  each<s>([&](auto j) { each<n>([&](auto i) { out[j * n + i] += low[j][i]; }); });
}

// The integer products of a block of 64 inputs of `s` int4 tiles: those of the low nibbles, and of the high ones.
template <int64_t n, int64_t s>
inline __attribute__((always_inline)) void multiply_nibbles(const Streams<s>& from, int64_t block, const char* const* x,
                                                            Quads (&low)[s][n], Quads (&high)[s][n]) {
  for (int line = 0; line < 8; ++line)
    each<s>([&](auto j) {
      Line first, second;
      lines4(from.line(j, block * 512 + line * 64), first, second);
      each<n>([&](auto i) {
        multiply(low[j][i], first, x[i] + line * 4);
        multiply(high[j][i], second, x[i] + line * 4 + 32);
      });
    });
}

template <int64_t n, int64_t s>
inline void tiles_int4(const Linear& linear, int64_t tile, int64_t apart, const Rows& rows, int64_t row, f32x16* out) {
  const Streams<s> from(linear, tile, apart);
  const int64_t groups = linear.groups(), halves = 64 / linear.group;
  f32x16 sum[s][n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    Quads low[s][n], high[s][n];
    multiply_nibbles<n, s>(from, block, x, low, high);
    const int64_t group = block * halves;
    each<s>([&](auto j) {
      const uint16_t* scales = linear.scale4 + ((tile + j * apart) * groups + group) * kTile;
      prefetch(reinterpret_cast<const char*>(scales) + kBesideAhead);
      if (linear.minimum != nullptr) prefetch(linear.minimum + ((tile + j * apart) * groups + group) * kTile);
      const f32x16 scale = load16_f16(scales);
      each<n>([&](auto i) {
        const int64_t at = Rows::index(groups, row + i, group), after = at + kTile;
        if (halves == 1) {
          join(low[j][i], high[j][i]);
          sum[j][i] = fma16(as_float(low[j][i].total(8, rows.sum[at])), all16(rows.scale[at]) * scale, sum[j][i]);
          return;
        }
        sum[j][i] = fma16(as_float(low[j][i].total(8, rows.sum[at])), all16(rows.scale[at]) * scale, sum[j][i]);
        const f32x16 next = load16_f16(scales + kTile);
        sum[j][i] = fma16(as_float(high[j][i].total(8, rows.sum[after])), all16(rows.scale[after]) * next, sum[j][i]);
      });
    });
  }
  each<s>([&](auto j) { each<n>([&](auto i) { out[j * n + i] = sum[j][i]; }); });
  if (linear.minimum != nullptr) add_minima<n, s>(linear, tile, apart, rows, row, out);
}

// The same with integer multipliers: all sums are of integers, so they are those of an int8 weight, (q - 8) * multiplier.
template <int64_t n, int64_t s>
inline void tiles_multiplied(const Linear& linear, int64_t tile, int64_t apart, const Rows& rows, int64_t row,
                             f32x16* out) {
  const Streams<s> from(linear, tile, apart);
  const int64_t groups = linear.groups(), halves = 64 / linear.group;
  i32x16 sum[s][n] = {};
  for (int64_t block = 0; block < linear.blocks(); ++block) {
    const char* x[n];
    for (int64_t i = 0; i < n; ++i) x[i] = rows.at(row + i, block);
    Quads low[s][n], high[s][n];
    multiply_nibbles<n, s>(from, block, x, low, high);
    const int64_t group = block * halves;
    each<s>([&](auto j) {
      const int8_t* multipliers = linear.multiplier + ((tile + j * apart) * groups + group) * kTile;
      prefetch(multipliers + kBesideAhead);
      const i32x16 multiplier = load16_i8(multipliers);
      each<n>([&](auto i) {
        const int64_t at = Rows::index(groups, row + i, group);
        if (halves == 1) {
          join(low[j][i], high[j][i]);
          sum[j][i] += low[j][i].total(8, rows.sum[at]) * multiplier;
          return;
        }
        sum[j][i] += low[j][i].total(8, rows.sum[at]) * multiplier;
        sum[j][i] += high[j][i].total(8, rows.sum[at + kTile]) * load16_i8(multipliers + kTile);
      });
    });
  }
  each<s>([&](auto j) {
    const f32x16 scale = load16(linear.scale8 + (tile + j * apart) * kTile);
    each<n>([&](auto i) { out[j * n + i] = as_float(sum[j][i]) * (all16(rows.scale[row + i]) * scale); });
  });
}

template <int64_t n, int64_t s>
inline void tiles_rows(const Product& product, int64_t tile, int64_t apart, int64_t row, f32x16* out) {
  const Linear& linear = *product.linear;
  if (linear.kind == Kind::bf16) {
    [[maybe_unused]] const LikeTiles small_ones;
    tiles_bf16<n, s>(linear, tile, apart, product.rows, row, out);
  } else if (linear.kind == Kind::int8) {
    tiles_int8<n, s>(linear, tile, apart, product.rows, row, out);
  } else if (linear.multiplier != nullptr) {
    tiles_multiplied<n, s>(linear, tile, apart, product.rows, row, out);
  } else {
    tiles_int4<n, s>(linear, tile, apart, product.rows, row, out);
  }
}

}  // namespace sash::SASH_ISA
