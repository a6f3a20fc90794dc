// Rows of activations on their way into a product: normalised, rotated, rounded. One row at a time, each by itself.
#pragma once

#include "linear.h"
#include "simd.h"

namespace sash::SASH_ISA {

// x / rms(x) * weight; `out` may be `x`.
inline void normalise(const float* x, const Norm& norm, int64_t k, float* out) {
  f32x16 squares[4] = {};
  int64_t i = 0;
  for (; i + 64 <= k; i += 64)
    for (int part = 0; part < 4; ++part) {
      const f32x16 value = load16(x + i + 16 * part);
      squares[part] = fma16(value, value, squares[part]);
    }
  for (; i < k; i += 16) {
    const f32x16 value = load_part(x + i, k - i < 16 ? k - i : 16);
    squares[0] = fma16(value, value, squares[0]);
  }
  const float total = sum16((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const f32x16 factor = all16(1.0f / std::sqrt(total / static_cast<float>(k) + norm.eps));
  for (i = 0; i + 16 <= k; i += 16) store16(out + i, load16(x + i) * factor * load16(norm.weight + i));
  for (; i < k; ++i) out[i] = x[i] * factor[0] * norm.weight[i];
}

// The stages of a Hadamard transform within sixteen lanes.
inline f32x16 hadamard16(f32x16 x) {
  constexpr i32x16 by1 = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
  constexpr i32x16 by2 = {2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13};
  constexpr i32x16 by4 = {4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11};
  constexpr i32x16 by8 = {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7};
  const f32x16 sign1 = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
  const f32x16 sign2 = {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
  const f32x16 sign4 = {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1};
  const f32x16 sign8 = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
  x = fma16(x, sign1, __builtin_shuffle(x, by1));
  x = fma16(x, sign2, __builtin_shuffle(x, by2));
  x = fma16(x, sign4, __builtin_shuffle(x, by4));
  return fma16(x, sign8, __builtin_shuffle(x, by8));
}

// One block of 16 `count` values.
template <int64_t count>
inline void rotate_block(float* x, float factor) {
  f32x16 lanes[count];
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; ++i) lanes[i] = hadamard16(load16(x + 16 * i));
#pragma GCC unroll 4
  for (int64_t width = 1; width < count; width *= 2)
#pragma GCC unroll 16
    for (int64_t i = 0; i < count; ++i)
      if (!(i & width)) {
        const f32x16 a = lanes[i], b = lanes[i + width];
        lanes[i] = a + b;
        lanes[i + width] = a - b;
      }
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; ++i) store16(x + 16 * i, lanes[i] * all16(factor));
}

// The stages of a block from `width` values on, then the factor; `width` and `block` are multiples of 16.
inline void rotate_wide(float* x, int64_t width, int64_t block, float factor) {
  for (; width < block; width *= 2) {
    const f32x16 last = all16(2 * width == block ? factor : 1.0f);
    for (int64_t from = 0; from < block; from += 2 * width)
      for (int64_t i = from; i < from + width; i += 16) {
        const f32x16 a = load16(x + i), b = load16(x + i + width);
        store16(x + i, (a + b) * last);
        store16(x + i + width, (a - b) * last);
      }
  }
}

inline void rotate_narrow(float* x, int64_t block, float factor) {
  for (int64_t width = 1; width < block; width *= 2)
    for (int64_t i = 0; i < block; ++i)
      if (!(i & width)) {
        const float a = x[i], b = x[i + width];
        x[i] = a + b;
        x[i + width] = a - b;
      }
  for (int64_t i = 0; i < block; ++i) x[i] *= factor;
}

inline void hadamard(float* x, int64_t block, float factor) {
  switch (block) {
    case 16: return rotate_block<1>(x, factor);
    case 32: return rotate_block<2>(x, factor);
    case 64: return rotate_block<4>(x, factor);
    case 128: return rotate_block<8>(x, factor);
    case 256: return rotate_block<16>(x, factor);
    default: break;
  }
  if (block < 16) return rotate_narrow(x, block, factor);
  for (int64_t part = 0; part < block; part += 256) rotate_block<16>(x + part, 1.0f);
  rotate_wide(x, 256, block, factor);
}

constexpr int64_t kMaxBlocks = 15;

// cas(2 pi i j / count) / sqrt(count) with cas = cos + sin, row by row, for every count.
struct HartleyMatrices {
  float of[kMaxBlocks + 1][kMaxBlocks * kMaxBlocks];

  HartleyMatrices() {
    for (int64_t count = 1; count <= kMaxBlocks; ++count)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < count; ++j) {
          const double angle = 6.283185307179586 / static_cast<double>(count) * static_cast<double>(i * j % count);
          of[count][i * count + j] =
              static_cast<float>((std::cos(angle) + std::sin(angle)) / std::sqrt(static_cast<double>(count)));
        }
  }
};

// Mixes `count` blocks with each other by a Hartley matrix.
inline void hartley(float* x, int64_t block, int64_t count, const float* matrix) {
  if (block < 16) {
    float from[kMaxBlocks];
    for (int64_t at = 0; at < block; ++at) {
      for (int64_t i = 0; i < count; ++i) from[i] = x[i * block + at];
      for (int64_t j = 0; j < count; ++j) {
        float sum = from[0] * matrix[j * count];
        for (int64_t i = 1; i < count; ++i) sum = sum + from[i] * matrix[j * count + i];
        x[j * block + at] = sum;
      }
    }
    return;
  }
  f32x16 from[kMaxBlocks];
  for (int64_t at = 0; at < block; at += 16) {
    for (int64_t i = 0; i < count; ++i) from[i] = load16(x + i * block + at);
    for (int64_t j = 0; j < count; ++j) {
      f32x16 sum = from[0] * all16(matrix[j * count]);
      for (int64_t i = 1; i < count; ++i) sum = sum + from[i] * all16(matrix[j * count + i]);
      store16(x + j * block + at, sum);
    }
  }
}

// Mixes each run of `rotation` values, in place: blocks of a power of two by Hadamard matrices over the square root of
// their size, then, where a run has several blocks, these with each other. k is a multiple of `rotation`.
inline void rotate(float* x, int64_t k, int64_t rotation) {
  if (rotation == 1) return;
  const int64_t block = rotation & -rotation, count = rotation / block;
  const float factor = 1.0f / std::sqrt(static_cast<float>(block));
  for (float* at = x; at < x + k; at += block)
    if (block > 1) hadamard(at, block, factor);
  if (count == 1) return;
  static const HartleyMatrices matrices;
  for (float* at = x; at < x + k; at += rotation) hartley(at, block, count, matrices.of[count]);
}

inline float largest_of(const float* x, int64_t from, int64_t upto) {
  f32x16 top = {};
  for (int64_t i = from; i < upto; i += 16) top = max16(top, abs16(load16(x + i)));
  return top16(top);
}

// Rounds inputs [from, upto) of a row to int8, and returns their sum; both ends are multiples of 32. Input 0 would lie at
// `to`, if all of them were of one panel.
inline int32_t round_inputs(const float* x, int64_t from, int64_t upto, float largest, char* to) {
  // Below the bound 127 / largest would leave the range of float32.
  const f32x16 inverse = all16(largest >= 0x1p-119f ? 127.0f / largest : 0.0f);
#if defined(__AVX512VNNI__)
  if (from % 64 == 0 && upto % 64 == 0) {
    // Whole lines: the conversion rounds to the nearest, and packing keeps to 127 at most.
    const __m512i least = _mm512_set1_epi32(-127), ones = _mm512_set1_epi8(1);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const auto whole = [&](const float* at) {
      return _mm512_max_epi32(_mm512_cvtps_epi32((__m512)(load16(at) * inverse)), least);
    };
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = from; i < upto; i += 64) {
      const __m512i low = _mm512_packs_epi32(whole(x + i), whole(x + i + 16));
      const __m512i high = _mm512_packs_epi32(whole(x + i + 32), whole(x + i + 48));
      const __m512i line = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
      sums = _mm512_dpbusd_epi32(sums, ones, line);
      _mm512_storeu_si512(to + i / 64 * (kTile * 64), line);
    }
    return sum16((i32x16)sums);
  }
#endif
  const i32x16 most = i32x16{} + 127;
  i32x16 total = {};
  for (int64_t i = from; i < upto; i += 16) {
    i32x16 q = __builtin_convertvector(round16(load16(x + i) * inverse), i32x16);
    q = q > most ? most : q;
    q = q < -most ? -most : q;
    total += q;
    typedef int8_t i8x16 __attribute__((vector_size(16)));
    const i8x16 narrow = __builtin_convertvector(q, i8x16);
    std::memcpy(to + i / 64 * (kTile * 64) + i % 64, &narrow, 16);
  }
  return sum16(total);
}

// Prepares one row: `x` holds form.k floats. `scratch` has room for padded_k floats.
inline void prepare_row(const float* x, const Norm* norm, const Form& form, const Rows& rows, int64_t row,
                        float* scratch) {
  const bool straight = norm == nullptr && form.rotation > 1;
  if (norm != nullptr) {
    normalise(x, *norm, form.k, scratch);
  } else if (straight) {
    // Turned as it comes in, while memory brings what comes next: a gated product has put it there past the caches.
    for (int64_t i = 0; i < form.k; i += form.rotation) {
      for (int64_t at = 0; at < form.rotation; at += 16) prefetch(x + i + 2 * form.rotation + at);
      std::memcpy(scratch + i, x + i, static_cast<size_t>(form.rotation) * 4);
      rotate(scratch + i, form.rotation, form.rotation);
    }
  } else {
    std::memcpy(scratch, x, static_cast<size_t>(form.k) * 4);
  }
  for (int64_t i = form.k; i < form.padded_k; ++i) scratch[i] = 0;
  if (form.kind == Kind::bf16) {
    for (int64_t i = 0; i < form.padded_k; i += 16)
      store_bf16(reinterpret_cast<uint16_t*>(rows.at(row, i / 32) + i % 32 * 2), load16(scratch + i));
    return;
  }
  if (!straight) rotate(scratch, form.k, form.rotation);
  const int64_t size = form.padded_k / form.groups;
  float largest = form.scale_groups == 1 ? largest_of(scratch, 0, form.padded_k) : 0;
  for (int64_t group = 0; group < form.groups; ++group) {
    const int64_t from = group * size, at = Rows::index(form.groups, row, group);
    if (form.scale_groups > 1) largest = largest_of(scratch, from, from + size);
    if (rows.depth == rows.blocks) {
      rows.sum[at] = round_inputs(scratch, from, from + size, largest, rows.at(row, 0));
    } else {
      rows.sum[at] = 0;
      for (int64_t block = from / 64; block * 64 < from + size; block = block / rows.depth * rows.depth + rows.depth) {
        const int64_t first = block / rows.depth * rows.depth, end = (first + rows.depth) * 64;
        rows.sum[at] += round_inputs(scratch, block * 64 > from ? block * 64 : from, from + size < end ? from + size : end,
                                     largest, rows.at(row, first) - first * (kTile * 64));
      }
    }
    if (form.scale_groups == 1 && group > 0) continue;
    const int64_t scale_at = Rows::index(form.scale_groups, row, group);
    rows.scale[scale_at] = largest / 127.0f;
    rows.scaled_sum[scale_at] = rows.scale[scale_at] * static_cast<float>(rows.sum[at]);
  }
}

// Rows that fill up the last tile: zeros, so that products with them are zeros.
inline void clear_rows(const Form& form, const Rows& rows, int64_t from, int64_t to) {
  for (int64_t row = from; row < to; ++row) {
    for (int64_t block = 0; block < form.row_bytes() / 64; ++block) std::memset(rows.at(row, block), 0, 64);
    for (int64_t group = 0; group < form.groups; ++group) {
      rows.sum[Rows::index(form.groups, row, group)] = 0;
      if (group >= form.scale_groups) continue;
      const int64_t at = Rows::index(form.scale_groups, row, group);
      rows.scale[at] = rows.scaled_sum[at] = 0;
    }
  }
}

// Row `row` of a tile of int8 weights: rotated, rounded by its largest value, and put into the tile's lines.
// `scratch` holds padded_k floats.
inline void pack_row(const float* x, int64_t k, int64_t padded_k, int64_t rotation, int64_t row, char* tile, float* scale,
                     float* scratch) {
  std::memcpy(scratch, x, static_cast<size_t>(k) * 4);
  for (int64_t i = k; i < padded_k; ++i) scratch[i] = 0;
  rotate(scratch, k, rotation);
  const float largest = largest_of(scratch, 0, padded_k);
  alignas(64) char rounded[kTile * kBlock];
  for (int64_t from = 0; from < padded_k; from += kBlock) {
    round_inputs(scratch + from, 0, kBlock, largest, rounded);
    char* to = tile + from / kBlock * 1024 + row * 4;
    for (int64_t quad = 0; quad < 16; ++quad) std::memcpy(to + quad * 64, rounded + quad * 4, 4);
  }
  *scale = largest / 127.0f;
}

// Row `row` of the weight that a linear stands for, any rotation undone, times `factor`: k numbers.
inline void unpack_row(const Linear& linear, int64_t row, float factor, float* out) {
  const int64_t tile = row / kTile, lane = row % kTile, groups = linear.groups();
  const char* const from = linear.tile(tile) + lane * 4;
  const auto by_group = [&](const auto* values, int64_t i) { return values[(tile * groups + i / linear.group) * kTile + lane]; };
  for (int64_t i = 0; i < linear.k; ++i) {
    if (linear.kind == Kind::bf16) {
      uint16_t bits;
      std::memcpy(&bits, from + i / 2 * 64 + i % 2 * 2, 2);
      out[i] = from_bf16(bits);
    } else if (linear.kind == Kind::int8) {
      out[i] = static_cast<float>(static_cast<int8_t>(from[i / 4 * 64 + i % 4])) * linear.scale8[row];
    } else {
      const uint8_t two = static_cast<uint8_t>(from[i / 64 * 512 + i % 32 / 4 * 64 + i % 4]);
      const float q = static_cast<float>((i % 64 < 32 ? two & 15 : two >> 4) - 8);
      if (linear.multiplier != nullptr) {
        out[i] = q * static_cast<float>(by_group(linear.multiplier, i)) * linear.scale8[row];
      } else {
        out[i] = q * from_f16(by_group(linear.scale4, i));
        if (linear.minimum != nullptr) out[i] += from_f16(by_group(linear.minimum, i));
      }
    }
  }
  rotate(out, linear.k, linear.rotation);
  for (int64_t i = 0; factor != 1.0f && i < linear.k; ++i) out[i] *= factor;
}

}  // namespace sash::SASH_ISA
