// Heads between a product and attention: normalised, turned by their angles, rounded to what attention reads.
#pragma once

#include "activations_isa.h"
#include "attention.h"

namespace sash::SASH_ISA {

// Each pair of components is turned by its angle (RoFormer, arXiv 2104.09864, section 3.4.2).
inline void turn_head(const float* x, const Norm& norm, const Angles& angles, int64_t head_dim, float* out) {
  float normed[kMaxHeadDim];
  if (norm.weight != nullptr) {
    normalise(x, norm, head_dim, normed);
    x = normed;
  }
  const int64_t half = head_dim / 2;
  int64_t i = 0;
  if (angles.interleaved) {
    for (; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = a * angles.cos[i] - b * angles.sin[i];
      out[2 * i + 1] = b * angles.cos[i] + a * angles.sin[i];
    }
  }
  for (; i + 16 <= half; i += 16) {
    const f32x16 a = load16(x + i), b = load16(x + half + i), cos = load16(angles.cos + i), sin = load16(angles.sin + i);
    store16(out + i, a * cos - b * sin);
    store16(out + half + i, b * cos + a * sin);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    out[i] = a * angles.cos[i] - b * angles.sin[i];
    out[half + i] = b * angles.cos[i] + a * angles.sin[i];
  }
  rotate(out, head_dim, angles.mixing);
}

inline void keep_head(const float* x, int64_t head_dim, char* to, float* scale) {
  int64_t i = 0;
  if (scale == nullptr) {
    uint16_t* out = reinterpret_cast<uint16_t*>(to);
    for (; i + 16 <= head_dim; i += 16) store_bf16(out + i, load16(x + i));
    for (; i < head_dim; ++i) out[i] = to_bf16(x[i]);
    return;
  }
  float largest = 0;
  for (i = 0; i < head_dim; ++i) largest = std::fmax(largest, std::fabs(x[i]));
  *scale = largest / 127.0f;
  const float inverse = largest >= 0x1p-119f ? 127.0f / largest : 0.0f;  // Below, 127 / largest leaves the range.
  int8_t* out = reinterpret_cast<int8_t*>(to);
  for (i = 0; i < head_dim; i += 16) {
    const int64_t count = head_dim - i < 16 ? head_dim - i : 16;
    const i32x16 q = __builtin_convertvector(round16(load_part(x + i, count) * all16(inverse)), i32x16);
    typedef int8_t i8x16 __attribute__((vector_size(16)));
    const i8x16 narrow = __builtin_convertvector(q, i8x16);
    std::memcpy(out + i, &narrow, static_cast<size_t>(count));
  }
}

}  // namespace sash::SASH_ISA
