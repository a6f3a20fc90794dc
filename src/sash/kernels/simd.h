// Sixteen floats at a time, in the compiler's own vectors: each instruction set gets what it has for them. Included by
// sources that are compiled once for each instruction set, inside its namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sash::SASH_ISA {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }

inline f32x16 load16(const float* from) {
  f32x16 value;
  std::memcpy(&value, from, 64);
  return value;
}
inline void store16(float* to, f32x16 value) { std::memcpy(to, &value, 64); }
inline f32x16 all16(float value) {
  return f32x16{value, value, value, value, value, value, value, value,
                value, value, value, value, value, value, value, value};
}
// The first `count` of sixteen; the others are zero.
inline f32x16 load_part(const float* from, int64_t count) {
  f32x16 value = {};
  std::memcpy(&value, from, static_cast<size_t>(count) * 4);
  return value;
}
inline f32x16 as_float(i32x16 value) { return __builtin_convertvector(value, f32x16); }
inline i32x16 load16_i8(const int8_t* from) {
#if defined(__AVX512F__)
  return (i32x16)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  i32x16 out;
  for (int half = 0; half < 2; ++half) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * half)));
    std::memcpy(reinterpret_cast<char*>(&out) + 32 * half, &wide, 32);
  }
  return out;
#else
  typedef int8_t i8x16 __attribute__((vector_size(16)));
  i8x16 narrow;
  std::memcpy(&narrow, from, 16);
  return __builtin_convertvector(narrow, i32x16);
#endif
}
// Sixteen bfloat16.
inline f32x16 load16_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
  f32x16 out;
  for (int half = 0; half < 2; ++half) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * half));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
    std::memcpy(reinterpret_cast<char*>(&out) + 32 * half, &wide, 32);
  }
  return out;
#else
  typedef uint16_t u16x16 __attribute__((vector_size(32)));
  u16x16 bits;
  std::memcpy(&bits, from, 32);
  return (f32x16)(__builtin_convertvector(bits, i32x16) << 16);
#endif
}
inline f32x16 abs16(f32x16 x) { return (f32x16)((i32x16)x & 0x7fffffff); }
inline f32x16 max16(f32x16 a, f32x16 b) { return a > b ? a : b; }

// a * b + c, rounded once wherever the processor can.
inline f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  f32x16 out;
  for (int half = 0; half < 2; ++half) {
    __m256 x, y, z;
    std::memcpy(&x, reinterpret_cast<const char*>(&a) + 32 * half, 32);
    std::memcpy(&y, reinterpret_cast<const char*>(&b) + 32 * half, 32);
    std::memcpy(&z, reinterpret_cast<const char*>(&c) + 32 * half, 32);
    z = _mm256_fmadd_ps(x, y, z);
    std::memcpy(reinterpret_cast<char*>(&out) + 32 * half, &z, 32);
  }
  return out;
#elif defined(__aarch64__)
  f32x16 out;
  for (int i = 0; i < 16; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}

// The sum of the sixteen, always in the same order.
inline float sum16(f32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX__)
  __m256 half[2];
  std::memcpy(half, &x, 64);
  const __m256 eight = _mm256_add_ps(half[0], half[1]);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float lanes[16];
  store16(lanes, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}
inline int32_t sum16(i32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t sum = 0;
  for (int lane = 0; lane < 16; ++lane) sum += x[lane];
  return sum;
#endif
}
inline float top16(f32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float lanes[16];
  store16(lanes, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
#endif
}

// To the nearest integer, ties to even, for |x| < 2^22.
inline f32x16 round16(f32x16 x) {
  const f32x16 magic = all16(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction.
  return (x + magic) - magic;
}

// 2^x by a polynomial of degree 6 on [-0.5, 0.5]; 0 below -126. Relative error below 2e-7.
inline f32x16 exp2_16(f32x16 x) {
  const f32x16 low = all16(-126.0f), high = all16(127.0f);
  const i32x16 tiny = x < low;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const f32x16 whole = round16(x), part = x - whole;
  f32x16 p = all16(1.5403530e-4f);
  p = fma16(p, part, all16(1.3333558e-3f));
  p = fma16(p, part, all16(9.6181291e-3f));
  p = fma16(p, part, all16(5.5504109e-2f));
  p = fma16(p, part, all16(2.4022651e-1f));
  p = fma16(p, part, all16(6.9314718e-1f));
  p = fma16(p, part, all16(1.0f));
  const i32x16 power = (__builtin_convertvector(whole, i32x16) + 127) << 23;
  return (f32x16)((i32x16)(p * (f32x16)power) & ~tiny);
}

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
// Round to the nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store_bf16(uint16_t* to, f32x16 value) {
#if defined(__AVX512BF16__)
  const __m256bh narrow16 = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(to, &narrow16, 32);
  return;
#else
  i32x16 bits = (i32x16)value;
  typedef uint32_t u32x16 __attribute__((vector_size(64)));
  typedef uint16_t u16x16 __attribute__((vector_size(32)));
  const i32x16 nan = (bits & 0x7fffffff) > 0x7f800000;
  u32x16 rounded = ((u32x16)bits + 0x7fff + (((u32x16)bits >> 16) & 1)) >> 16;
  rounded = ((u32x16)nan & (((u32x16)bits >> 16) | 0x40)) | (~(u32x16)nan & rounded);
  const u16x16 narrow = __builtin_convertvector(rounded, u16x16);
  std::memcpy(to, &narrow, 32);
#endif
}

inline float from_f16(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 5.9604644775390625e-08f;  // 2^-24
    return sign ? -value : value;
  }
  const uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
#endif
}
inline f32x16 load16_f16(const uint16_t* from) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  f32x16 value;
  for (int i = 0; i < 16; ++i) value[i] = from_f16(from[i]);
  return value;
#endif
}

}  // namespace sash::SASH_ISA
