// From scores to weights: a row's keys of a block at a time, with the row's running reference and sum.
#pragma once

#include <utility>

#include "attention_scratch.h"

#define SASH_INLINE inline __attribute__((always_inline))

namespace sash::SASH_ISA {

// A block of keys met by a pair of query tiles.
struct Item {
  int64_t pair = 0, block = 0, n_rows = 0;
  int64_t base = 0, first = 0, stop = 0;  // The block's first position; a key is seen from `first` to before `stop` ...
  int64_t window = 0;                     // ... and as the window allows.
  int64_t count = 0;                      // For the pair's last block of a group: how many it has of it.
  bool masked = false;                    // Some row does not see all of the block, or its scores have biases.
  bool annex = false;                     // Its keys' positions say nothing: every row sees them.

  // Up to which position a row at `position` sees.
  int64_t sees(int64_t position) const { return annex ? INT64_MAX / 2 : position; }
};

// Calls `body` with each of 0 to n - 1 as a constant: arrays that are indexed by it live in registers.
template <class Body, int... i>
SASH_INLINE void unrolled(std::integer_sequence<int, i...>, Body&& body) {
  (body(std::integral_constant<int, i>()), ...);
}
template <int n, class Body>
SASH_INLINE void unrolled(Body&& body) {
  unrolled(std::make_integer_sequence<int, n>(), body);
}

// 2^x of several vectors in step, so that each operation's latency hides behind the others'; infinity from x = 128. The
// whole part goes to the exponent, a polynomial of the fraction does the rest: of relative error 9e-5 where weights are to
// be rounded to bfloat16 (2e-3), else 3e-6.
template <int n>
SASH_INLINE void fast_exp2(f32x16* x) {
  f32x16 part[n], p[n];
#if defined(__AMX_TILE__)
  unrolled<n>([&](auto i) { part[i] = (f32x16)_mm512_reduce_ps((__m512)x[i], _MM_FROUND_TO_NEG_INF); });
  unrolled<n>([&](auto i) { p[i] = fma16(all16(0.07706705f), part[i], all16(0.22764498f)); });
  unrolled<n>([&](auto i) { p[i] = fma16(p[i], part[i], all16(0.6951168f)); });
  unrolled<n>([&](auto i) { p[i] = fma16(p[i], part[i], all16(1.0f)); });
  unrolled<n>([&](auto i) { x[i] = (f32x16)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]); });
#else
  const f32x16 magic = all16(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction.
  i32x16 tiny[n], exponent[n];
  unrolled<n>([&](auto i) {
    tiny[i] = x[i] < -126.0f;
    x[i] = x[i] < -126.0f ? all16(-126.0f) : x[i];
    x[i] = x[i] > 128.0f ? all16(128.0f) : x[i];
    const f32x16 whole = (x[i] + magic) - magic;
    part[i] = x[i] - whole;
    exponent[i] = (__builtin_convertvector(whole, i32x16) + 127) << 23;  // Of 255 makes infinity.
  });
  unrolled<n>([&](auto i) { p[i] = fma16(all16(9.5828529e-3f), part[i], all16(5.5906426e-2f)); });
  unrolled<n>([&](auto i) { p[i] = fma16(p[i], part[i], all16(2.4024099e-1f)); });
  unrolled<n>([&](auto i) { p[i] = fma16(p[i], part[i], all16(6.9312418e-1f)); });
  unrolled<n>([&](auto i) { p[i] = fma16(p[i], part[i], all16(1.0f)); });
  unrolled<n>([&](auto i) { x[i] = (f32x16)((i32x16)(p[i] * (f32x16)exponent[i]) & ~tiny[i]); });
#endif
}

inline f32x16 greater_of(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return max16(a, b);
#endif
}

// Weights of a row's first block are at most 2^-kHeadroom. The reference is moved when one of a later block reaches 2,
// which a bit of its exponent tells: float32 has the room, and sums need not be corrected for each slightly higher score.
constexpr float kHeadroom = 7.0f;
SASH_INLINE bool any_too_high(i32x16 bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x40000000)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < 16; ++i) all |= bits[i];
  return all & 0x40000000;
#endif
}

// Stores a row's weights of keys 0 to 15 and 16 to 31, and adds them to its sum: for bfloat16 as they were rounded, so
// that rounding cancels between numerator and denominator.
template <bool scaled>
SASH_INLINE void store_weights(element* row, f32x16 a, f32x16 b, const float* factor, float* sum) {
  f32x16 total = load16(sum);
  if (scaled) {
    total += a + b;
    a *= load16(factor);
    b *= load16(factor + 16);
  }
#if defined(__AMX_TILE__)
  const i32x16 first = (i32x16)a + 0x8000, second = (i32x16)b + 0x8000;
  // Bits of `second` above, of `first` below.
  const __m512i pairs = _mm512_ternarylogic_epi32(_mm512_srli_epi32((__m512i)first, 16), (__m512i)second,
                                                  _mm512_set1_epi32(0xffff), 0xe4);
  _mm512_storeu_si512(row, pairs);
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  if (!scaled) total = (f32x16)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)ones);
#else
  store16(row, a);
  store16(row + 16, b);
  if (!scaled) total += a + b;
#endif
  store16(sum, total);
}

// The rows of one item on their way from scores to weights.
class Softmax {
 public:
  Softmax(Scratch& scratch, const Item& item, const float* scores)
      : scratch_(scratch), item_(item), scores_(scores), key_factor_(scratch.key_factor + item.block * kKeyBlock),
        value_factor_(scratch.value_factor + item.block * kKeyBlock), n_rows_(item.n_rows) {}

  int64_t left() const { return n_rows_ - row_; }

  // The next four rows of an item that is not masked.
  template <bool scaled>
  SASH_INLINE void four_rows() {
    few_rows<4, false, scaled>();
    row_ += 4;
  }

  // All that are left.
  void finish() {
    const bool scaled = scratch_.scaled[item_.block];
    if (item_.masked)
      scaled ? all_rows<true, true>() : all_rows<true, false>();
    else
      scaled ? all_rows<false, true>() : all_rows<false, false>();
  }

 private:
  template <bool masked, bool scaled>
  __attribute__((noinline)) void all_rows() {
    for (; row_ + 4 <= n_rows_; row_ += 4) few_rows<4, masked, scaled>();
    for (; row_ < n_rows_; ++row_) few_rows<1, masked, scaled>();
  }

  template <int n, bool masked, bool scaled>
  SASH_INLINE void few_rows() {
    const int64_t at = item_.pair * kQueryPair + row_;
    f32x16 x[2 * n];
    i32x16 bits = {};
    weigh<n, masked>(x);
    unrolled<2 * n>([&](auto i) { bits |= (i32x16)x[i]; });
    if (__builtin_expect(any_too_high(bits), false)) {
      f32x16 again[2 * n];
      raise_rows<n, masked>(again);
      unrolled<2 * n>([&](auto i) { x[i] = again[i]; });
    }
    unrolled<n>([&](auto i) {
      store_weights<scaled>(scratch_.weights_row(item_.block, row_ + i), x[2 * i], x[2 * i + 1], value_factor_,
                            scratch_.sum + (at + i) * 16);
    });
  }

  // Weights of the next n rows, by their references.
  template <int n, bool masked>
  SASH_INLINE void weigh(f32x16* x) const {
    const float* const bias = scratch_.bias + item_.pair * kQueryPair + row_;
    unrolled<n>([&](auto i) { scores<masked>(row_ + i, bias[i], x[2 * i], x[2 * i + 1]); });
    fast_exp2<2 * n>(x);
  }

  // The same where some are too high. Rarely needed, hence out of the loop's way.
  template <int n, bool masked>
  __attribute__((noinline)) void raise_rows(f32x16* x) {
    weigh<n, masked>(x);
    for (int i = 0; i < n; ++i)
      if (any_too_high((i32x16)x[2 * i] | (i32x16)x[2 * i + 1])) raise<masked>(row_ + i);
    weigh<n, masked>(x);
  }

  // A row's scores as powers of two.
  template <bool masked>
  SASH_INLINE void scores(int64_t row, float bias, f32x16& a, f32x16& b) const {
    const float* const s = scores_ + row * kKeyBlock;
    a = fma16(load16(s), load16(key_factor_), all16(bias));
    b = fma16(load16(s + 16), load16(key_factor_ + 16), all16(bias));
    if (!masked) return;
    if (scratch_.biased[item_.block]) {
      a += load16(scratch_.key_bias + item_.block * kKeyBlock);
      b += load16(scratch_.key_bias + item_.block * kKeyBlock + 16);
    }
    const int64_t position = item_.sees(scratch_.position[item_.pair * kQueryPair + row]);
    const int64_t oldest = item_.window ? most(item_.first, position - item_.window + 1) : item_.first;
    const int32_t first = static_cast<int32_t>(most(oldest - item_.base, 0));
    const int32_t stop = static_cast<int32_t>(least(least(position + 1, item_.stop) - item_.base, kKeyBlock));
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const auto mask = [&](f32x16& x, i32x16 key) {
      const i32x16 seen = (key >= first) & (key < stop);
      x = (f32x16)((seen & (i32x16)x) | (~seen & (i32x16)all16(kUnseen)));
    };
    mask(a, lane);
    mask(b, lane + 16);
  }

  // Moves a row's reference above its highest score of this block.
  template <bool masked>
  void raise(int64_t row) {
    const int64_t at = item_.pair * kQueryPair + row;
    float* const sum = scratch_.sum + at * 16;
    f32x16 a, b;
    scores<masked>(row, 0.0f, a, b);
    const float bias = -(top16(greater_of(a, b)) + kHeadroom);
    f32x16 correction = all16(bias - scratch_.bias[at]);
    fast_exp2<1>(&correction);
    scratch_.bias[at] = bias;
    store16(sum, load16(sum) * correction);
    const uint32_t bit = 1u << row;
    scratch_.correction[row] = (scratch_.corrected & bit ? scratch_.correction[row] : 1.0f) * correction[0];
    scratch_.corrected |= bit;
    // Weights of the group that await the product with their values.
    for (int64_t block = 0; block < item_.block; ++block) scale_weights(scratch_.weights_row(block, row), correction);
  }

  static void scale_weights(element* row, f32x16 factor) {
    for (int i = 0; i < 2; ++i) {
#if defined(__AMX_TILE__)
      const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 16 * i));
      store_bf16(row + 16 * i, (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16) * factor);
#else
      store16(row + 16 * i, load16(row + 16 * i) * factor);
#endif
    }
  }

  Scratch& scratch_;
  const Item& item_;
  const float* const scores_;
  const float *const key_factor_, *const value_factor_;
  const int64_t n_rows_;
  int64_t row_ = 0;
};

// What was summed in earlier groups before a row's reference moved, in the new reference's measure.
inline void correct_sums(Scratch& scratch, int64_t pair) {
  for (; scratch.corrected != 0; scratch.corrected &= scratch.corrected - 1) {
    const int row = __builtin_ctz(scratch.corrected);
    float* o = scratch.o_tile(2 * pair + row / 16) + row % 16 * 16;
    for (int64_t col = 0; col < scratch.cols; ++col, o += 256) store16(o, load16(o) * scratch.correction[row]);
  }
}

}  // namespace sash::SASH_ISA
