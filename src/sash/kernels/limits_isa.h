// See limits.h. Included by isa_kernels.cpp, once for each instruction set.
#pragma once

#include <cstring>

#include "limits.h"
#include "simd.h"
#include "tiles.h"

namespace sash::SASH_ISA {

namespace {

// Eight runs of lines side by side: a core follows that many streams ahead of time, and one alone leaves it waiting.
uint64_t read_memory(const char* data, int64_t n_bytes) {
  constexpr int kStreams = 8, kLines = 8, kSums = 4;
  constexpr int64_t kStep = 64 * kLines;
  i32x16 mixed[kSums] = {};
  const auto mix = [&mixed](const char* from) {
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) {
      i32x16 value;
      std::memcpy(&value, from + 64 * line, 64);
      mixed[line % kSums] ^= value;
    }
  };
  const int64_t part = n_bytes / (kStreams * kStep) * kStep;
  for (int64_t start = 0; start < part; start += kStep)
    for (int stream = 0; stream < kStreams; ++stream) mix(data + stream * part + start);
  for (int64_t start = kStreams * part; start < n_bytes; start += kStep) mix(data + start);
  for (int sum = 1; sum < kSums; ++sum) mixed[0] ^= mixed[sum];
  uint64_t result = 0;
  for (int i = 0; i < 16; ++i) result = result * 31 + static_cast<uint32_t>(mixed[0][i]);
  return result;
}

// Keeps the compiler from seeing that a value in a register is never used.
template <class T>
inline void keep(T& value) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(value));
#elif defined(__AVX2__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

#if defined(__AMX_TILE__)

// Four sums, two operands on each side: as many products are under way as tiles allow.
int64_t multiply_numbers(Numbers numbers, int64_t rounds) {
  tile_config();
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
  for (int64_t round = 0; round < rounds; ++round) {
    if (numbers == Numbers::int8) {
      tile_dot_int8<0, 4, 6>(), tile_dot_int8<1, 4, 7>(), tile_dot_int8<2, 5, 6>(), tile_dot_int8<3, 5, 7>();
    } else {
      tile_dot_bf16<0, 4, 6>(), tile_dot_bf16<1, 4, 7>(), tile_dot_bf16<2, 5, 6>(), tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_release();
  return rounds * 4 * 2 * 16 * 16 * (numbers == Numbers::int8 ? 64 : 32);
}

#else

int64_t multiply_floats(int64_t rounds) {
#if defined(__AVX512F__)
  typedef __m512 Register;
  constexpr int kSums = 12;
  const Register a = _mm512_set1_ps(0.5f);
  auto step = [&](Register& sum) { sum = _mm512_fmadd_ps(sum, a, a); };
#elif defined(__AVX2__)
  typedef __m256 Register;
  constexpr int kSums = 12;
  const Register a = _mm256_set1_ps(0.5f);
  auto step = [&](Register& sum) { sum = _mm256_fmadd_ps(sum, a, a); };
#else
  typedef f32x16 Register;
  constexpr int kSums = 2;
  const Register a = all16(0.5f);
  auto step = [&](Register& sum) { sum = fma16(sum, a, a); };
#endif
  Register sums[kSums] = {};
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      step(sums[i]);
      keep(sums[i]);
    }
  }
  return rounds * kSums * 2 * static_cast<int64_t>(sizeof(Register) / 4);
}

int64_t multiply_bytes(int64_t rounds) {
#if defined(__AVX512VNNI__)
  constexpr int kSums = 12;
  __m512i sums[kSums] = {};
  const __m512i a = _mm512_set1_epi8(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], a, a);
      keep(sums[i]);
    }
  }
  return rounds * kSums * 128;
#elif defined(__AVX2__)
  constexpr int kSums = 12;
  __m256i sums[kSums] = {};
  const __m256i a = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      __m256i pairs = _mm256_maddubs_epi16(a, a);
      keep(pairs);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
      keep(sums[i]);
    }
  }
  return rounds * kSums * 64;
#else
  constexpr int kSums = 4;
  i32x16 sums[kSums] = {}, a = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kSums; ++i) {
      keep(a);
      sums[i] += a * a;
      keep(sums[i]);
    }
  }
  return rounds * kSums * 32;
#endif
}

int64_t multiply_numbers(Numbers numbers, int64_t rounds) {
  return numbers == Numbers::int8 ? multiply_bytes(rounds) : multiply_floats(rounds);
}

#endif

}  // namespace

const LimitTable& limits() {
  static const LimitTable filled{read_memory, multiply_numbers};
  return filled;
}

}  // namespace sash::SASH_ISA
