// Products of one line of weights, 64 bytes: a few inputs of sixteen outputs. The smallest step of a product by vectors.
#pragma once

#include "linear.h"
#include "simd.h"

namespace sash::SASH_ISA {

// Sums of products of int8 for sixteen outputs. A line of weights is [output][4 inputs]; `quad` is four activations.
// Where the processor multiplies unsigned by signed only, weights are shifted up by `kShift` (int8) or taken as the
// nibbles that they are (int4, 8 too high), and `total` takes the shift times the activations' sum off again.
#if defined(__AVX512VNNI__)

struct Quads {
  __m512i sum = _mm512_setzero_si512();
  i32x16 total(int32_t shift, int32_t activations) const {
    return (i32x16)_mm512_sub_epi32(sum, _mm512_set1_epi32(shift * activations));
  }
};
typedef __m512i Line;
constexpr int32_t kShift = 128;
inline Line line8(const void* from) {
  return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(static_cast<char>(0x80)));
}
inline void lines4(const void* from, Line& low, Line& high) {
  const __m512i both = _mm512_loadu_si512(from), nibble = _mm512_set1_epi8(15);
  low = _mm512_and_si512(both, nibble);
  high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
}
inline void multiply(Quads& quads, Line line, const char* quad) {
  int32_t four;
  std::memcpy(&four, quad, 4);
  quads.sum = _mm512_dpbusd_epi32(quads.sum, line, _mm512_set1_epi32(four));
}
inline void join(Quads& into, const Quads& other) { into.sum = _mm512_add_epi32(into.sum, other.sum); }

#elif defined(__AVX2__)

// Each 32-bit lane holds two of an output's four products; pairs of lanes are joined at the end.
struct Quads {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  i32x16 total(int32_t shift, int32_t activations) const {
    i32x16 out;
    for (int i = 0; i < 4; ++i) {
      int32_t lanes[8];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum[i]);
      for (int j = 0; j < 4; ++j) out[4 * i + j] = lanes[2 * j] + lanes[2 * j + 1] - shift * activations;
    }
    return out;
  }
};
struct Line {
  __m256i wide[4];  // int16: four outputs each.
};
constexpr int32_t kShift = 0;
inline Line line8(const void* from) {
  const char* bytes = static_cast<const char*>(from);
  Line line;
  for (int i = 0; i < 4; ++i)
    line.wide[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i)));
  return line;
}
inline void lines4(const void* from, Line& low, Line& high) {
  const char* bytes = static_cast<const char*>(from);
  const __m128i nibble = _mm_set1_epi8(15);
  for (int i = 0; i < 4; ++i) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i));
    low.wide[i] = _mm256_cvtepi8_epi16(_mm_and_si128(both, nibble));
    high.wide[i] = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), nibble));
  }
}
inline void multiply(Quads& quads, const Line& line, const char* quad) {
  int32_t four;
  std::memcpy(&four, quad, 4);
  const __m256i x = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
  for (int i = 0; i < 4; ++i) quads.sum[i] = _mm256_add_epi32(quads.sum[i], _mm256_madd_epi16(line.wide[i], x));
}
inline void join(Quads& into, const Quads& other) {
  for (int i = 0; i < 4; ++i) into.sum[i] = _mm256_add_epi32(into.sum[i], other.sum[i]);
}

#else

struct Quads {
  i32x16 sum = {};
  i32x16 total(int32_t shift, int32_t activations) const { return sum - shift * activations; }
};
struct Line {
  i32x16 part[4];  // One of the four inputs each.
};
constexpr int32_t kShift = 0;
inline Line line8(const void* from) {
  const int8_t* bytes = static_cast<const int8_t*>(from);
  Line line;
  for (int output = 0; output < 16; ++output)
    for (int i = 0; i < 4; ++i) line.part[i][output] = bytes[4 * output + i];
  return line;
}
inline void lines4(const void* from, Line& low, Line& high) {
  const uint8_t* bytes = static_cast<const uint8_t*>(from);
  for (int output = 0; output < 16; ++output)
    for (int i = 0; i < 4; ++i) {
      low.part[i][output] = bytes[4 * output + i] & 15;
      high.part[i][output] = bytes[4 * output + i] >> 4;
    }
}
inline void multiply(Quads& quads, const Line& line, const char* quad) {
  for (int i = 0; i < 4; ++i) quads.sum += line.part[i] * static_cast<int32_t>(static_cast<int8_t>(quad[i]));
}
inline void join(Quads& into, const Quads& other) { into.sum += other.sum; }

#endif

// Pairs of bfloat16, as two vectors of floats: a line of weights, [output][2 inputs], or a pair of inputs for all outputs.
inline void pairs16(i32x16 both, f32x16& even, f32x16& odd) {
  even = (f32x16)(both << 16);
  odd = (f32x16)(both & static_cast<int32_t>(0xffff0000));
}

inline void prefetch_far(const void* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace sash::SASH_ISA
