// From scores to weights: one row's 64 keys of a block at a time, with the row's running reference and sum.
#pragma once

#include "attention_scratch.h"

namespace sash::SASH_ISA {

// A reference is only moved when a score exceeds it by this (in powers of two): float32 has the room, and sums need
// not be corrected for each slightly higher score.
constexpr float kHeadroom = 8.0f;

// A block of 64 keys met by a pair of query tiles.
struct Item {
  int64_t pair = -1, slot = 0, n_rows = 0;
  int64_t base = 0, first = 0, stop = 0;  // The block's first position; a key is seen from `first` to before `stop` ...
  int64_t window = 0;                     // ... and as the window allows.
  bool masked = false, scaled = false;    // Some row does not see all of the block; it has factors.
};

// 2^x for x < 128: the whole part goes to the exponent, a polynomial of relative error 3e-6 does the rest.
inline f32x16 fast_exp2(f32x16 x) {
#if defined(__AVX512DQ__)
  const f32x16 part = (f32x16)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
  const i32x16 tiny = x < -126.0f;
  const f32x16 bounded = (f32x16)((~tiny & (i32x16)x) | (tiny & (i32x16)all16(-126.0f)));
  const i32x16 whole = __builtin_convertvector(bounded + 127.0f, i32x16);
  const f32x16 part = bounded - as_float(whole - 127);
#endif
  f32x16 p = all16(0.013426685705780983f);
  p = fma16(p, part, all16(0.052242472767829895f));
  p = fma16(p, part, all16(0.2412802129983902f));
  p = fma16(p, part, all16(0.6930448412895203f));
  p = fma16(p, part, all16(1.0f));
#if defined(__AVX512DQ__)
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return (f32x16)((i32x16)(p * (f32x16)(whole << 23)) & ~tiny);
#endif
}

inline f32x16 greater_of(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return max16(a, b);
#endif
}
inline bool any_above(f32x16 x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#else
  return top16(x) > bound;
#endif
}

// Stores the weights of keys 32 * half + (0 to 15 | 16 to 31), and returns what is to be added to the row's sum: for
// bfloat16 the rounded weights, so that rounding cancels between numerator and denominator.
template <bool scaled>
inline f32x16 store_weights(element* row, int64_t half, f32x16 a, f32x16 b, const float* factor) {
  f32x16 added = a + b;
  if (scaled) {
    a *= load16(factor + 32 * half);
    b *= load16(factor + 32 * half + 16);
  }
#if defined(__AMX_TILE__)
  const i32x16 upper = (i32x16)all16(0.0f) + static_cast<int32_t>(0xffff0000);
  const i32x16 first = ((i32x16)a + 0x8000) & upper, second = ((i32x16)b + 0x8000) & upper;
  if (!scaled) added = (f32x16)first + (f32x16)second;
  const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32((__m512i)first, 16), (__m512i)second);
  _mm512_storeu_si512(row + half * 512, pairs);
#else
  store16(row + 32 * half, a);
  store16(row + 32 * half + 16, b);
#endif
  return added;
}
inline element* weights_row(element* p, int64_t row) {
#if defined(__AMX_TILE__)
  return p + row / 16 * 1024 + row % 16 * 32;
#else
  return p + row * kKeyBlock;
#endif
}

// The rows of one item on their way from scores to weights.
class Softmax {
 public:
  Softmax(const Scratch& scratch, const AttentionTask& task, const Item& item, Scratch::Stage& stage)
      : scratch_(scratch), item_(item), stage_(stage), scale_(task.scale * 1.44269504088896341f) {
    stage.corrected = 0;
  }

  // Goes on to before row `stop` of the pair.
  void advance(int64_t stop) {
    stop = least(stop, item_.n_rows);
    if (item_.masked)
      item_.scaled ? rows<true, true>(stop) : rows<true, false>(stop);
    else
      item_.scaled ? rows<false, true>(stop) : rows<false, false>(stop);
  }

 private:
  template <bool masked, bool scaled>
  void rows(int64_t stop) {
    const float* const factor = scratch_.key_factor + item_.slot * kKeyBlock;
    for (; row_ < stop; ++row_) {
      const int64_t at = item_.pair * kQueryPair + row_;
      const float* const s = stage_.s + row_ * kKeyBlock;
      f32x16 x[4];
      for (int i = 0; i < 4; ++i) x[i] = scores<masked, scaled>(s, factor, i, at, scratch_.top[at]);
      if (any_above(greater_of(greater_of(x[0], x[1]), greater_of(x[2], x[3])), kHeadroom)) {
        raise<masked, scaled>(s, factor, at);
        for (int i = 0; i < 4; ++i) x[i] = scores<masked, scaled>(s, factor, i, at, scratch_.top[at]);
      }
      for (int i = 0; i < 4; ++i) x[i] = fast_exp2(x[i]);
      element* const weights = weights_row(stage_.p, row_);
      const float* const value_factor = scratch_.value_factor + item_.slot * kKeyBlock;
      const f32x16 low = store_weights<scaled>(weights, 0, x[0], x[1], value_factor);
      const f32x16 high = store_weights<scaled>(weights, 1, x[2], x[3], value_factor);
      store16(scratch_.sum + at * 16, load16(scratch_.sum + at * 16) + (low + high));
    }
  }

  // Scores of keys 16i to 16i + 15, as powers of two above `top`.
  template <bool masked, bool scaled>
  f32x16 scores(const float* s, const float* factor, int i, int64_t at, float top) const {
    const f32x16 by = scaled ? load16(factor + 16 * i) * scale_ : all16(scale_);
    const f32x16 x = fma16(load16(s + 16 * i), by, all16(-top));
    if (!masked) return x;
    const int64_t position = scratch_.position[at];
    const int64_t oldest = item_.window ? most(item_.first, position - item_.window + 1) : item_.first;
    const int32_t first = static_cast<int32_t>(most(oldest - item_.base, 0)) - 16 * i;
    const int32_t stop = static_cast<int32_t>(least(least(position + 1, item_.stop) - item_.base, kKeyBlock)) - 16 * i;
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i32x16 seen = (lane >= first) & (lane < stop);
    return (f32x16)((seen & (i32x16)x) | (~seen & (i32x16)all16(kUnseen)));
  }

  // Moves a row's reference up to its highest score of this block. Rarely needed, hence out of the loop's way.
  template <bool masked, bool scaled>
  __attribute__((noinline)) void raise(const float* s, const float* factor, int64_t at) {
    f32x16 highest = all16(kUnseen);
    for (int i = 0; i < 4; ++i) highest = greater_of(highest, scores<masked, scaled>(s, factor, i, at, 0.0f));
    const float top = top16(highest);
    const f32x16 correction = fast_exp2(all16(scratch_.top[at] - top));
    scratch_.top[at] = top;
    store16(scratch_.sum + at * 16, load16(scratch_.sum + at * 16) * correction);
    stage_.correction[row_] = correction[0];
    stage_.corrected |= 1u << row_;
  }

  const Scratch& scratch_;
  const Item& item_;
  Scratch::Stage& stage_;
  const float scale_;
  int64_t row_ = 0;
};

// What was summed before a row's reference moved, in the new reference's measure.
inline void correct(const Scratch& scratch, int64_t pair, const Scratch::Stage& stage) {
  for (uint32_t left = stage.corrected; left != 0; left &= left - 1) {
    const int row = __builtin_ctz(left);
    float* o = scratch.o_tile(2 * pair + row / 16) + row % 16 * 16;
    for (int64_t col = 0; col < scratch.cols; ++col, o += 256) store16(o, load16(o) * stage.correction[row]);
  }
}

}  // namespace sash::SASH_ISA
