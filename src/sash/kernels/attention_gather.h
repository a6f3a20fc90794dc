// Gathering a block of keys from wherever they lie, into the layouts of the products.
#pragma once

#include "attention_scratch.h"

namespace sash::SASH_ISA {

struct BlockRows {
  const char* keys[kKeyBlock];
  const char* values[kKeyBlock];
  bool scaled;      // Some rows are int8: they have factors.
  bool int8;        // All rows are still int8.
  int64_t stride;   // All rows are of one run and this far apart; otherwise 0.
};

alignas(64) static const char kZeroRow[2 * kMaxHeadDim] = {};

inline void widen_row(uint16_t* to, const char* from, int64_t count) {
  const int8_t* narrow = reinterpret_cast<const int8_t*>(from);
  for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(static_cast<float>(narrow[i]));
}

// Nearly every block lies in one run; false where this one does not.
inline bool find_whole(const AttentionTask& task, int64_t base, Sight sight, float* key_factor, float* value_factor,
                       BlockRows& rows) {
  for (int64_t i = 0; i < task.n_runs; ++i) {
    const KeyRun& run = task.runs[i];
    const int64_t at = base - run.first_position;
    if (run.sight != sight || at < 0 || at + kKeyBlock > run.count) continue;
    rows.scaled = rows.int8 = run.key_scales != nullptr;
    rows.stride = run.stride;
    const char* key = static_cast<const char*>(run.keys) + at * run.stride;
    const char* value = static_cast<const char*>(run.values) + at * run.stride;
    for (int64_t j = 0; j < kKeyBlock; ++j, key += run.stride, value += run.stride) {
      rows.keys[j] = key;
      rows.values[j] = value;
    }
    if (rows.scaled) {
      std::memcpy(key_factor, run.key_scales + at, kKeyBlock * 4);
      std::memcpy(value_factor, run.value_scales + at, kKeyBlock * 4);
      return true;
    }
    for (int64_t j = 0; j < kKeyBlock; ++j) key_factor[j] = value_factor[j] = 1.0f;
    return true;
  }
  return false;
}

// Where the rows of a block from position `base` lie. Positions that no run holds are rows of zeros. A block in which
// int8 meets bfloat16 becomes bfloat16: an int8 is one exactly.
inline void find_rows(const AttentionTask& task, int64_t base, Sight sight, float* key_factor, float* value_factor,
                      uint16_t* widened, BlockRows& rows) {
  if (find_whole(task, base, sight, key_factor, value_factor, rows)) return;
  rows.stride = 0;
  bool narrow[kKeyBlock] = {};
  int64_t n_narrow = 0, n_wide = 0;
  for (int64_t j = 0; j < kKeyBlock; ++j) {
    rows.keys[j] = rows.values[j] = kZeroRow;
    key_factor[j] = value_factor[j] = 1.0f;
  }
  for (int64_t i = 0; i < task.n_runs; ++i) {
    const KeyRun& run = task.runs[i];
    if (run.sight != sight) continue;
    const int64_t stop = least(base + kKeyBlock, run.first_position + run.count);
    for (int64_t position = most(base, run.first_position); position < stop; ++position) {
      const int64_t j = position - base, at = position - run.first_position;
      rows.keys[j] = static_cast<const char*>(run.keys) + at * run.stride;
      rows.values[j] = static_cast<const char*>(run.values) + at * run.stride;
      narrow[j] = run.key_scales != nullptr;
      ++(narrow[j] ? n_narrow : n_wide);
      if (!narrow[j]) continue;
      key_factor[j] = run.key_scales[at];
      value_factor[j] = run.value_scales[at];
    }
  }
  rows.scaled = n_narrow > 0;
  rows.int8 = n_narrow > 0 && n_wide == 0;
  if (n_narrow == 0 || n_wide == 0) return;
  for (int64_t j = 0; j < kKeyBlock; ++j) {
    if (!narrow[j]) continue;
    uint16_t* const key = widened + 2 * j * task.head_dim;
    widen_row(key, rows.keys[j], task.head_dim);
    widen_row(key + task.head_dim, rows.values[j], task.head_dim);
    rows.keys[j] = reinterpret_cast<const char*>(key);
    rows.values[j] = reinterpret_cast<const char*>(key + task.head_dim);
  }
}

#if defined(__AMX_TILE__)

// Four words (of 4 bytes) of 16 rows, transposed: out[w] holds word w of rows 0 to 15.
inline void transpose_words(const char* const* rows, int64_t offset, __m512i* out) {
  __m512i a[4];
  for (int i = 0; i < 4; ++i) {
    const auto words = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset)); };
    // Masked broadcasts from memory need no shuffle, of which the processor does one at a time.
    a[i] = _mm512_castsi128_si512(words(i));
    a[i] = _mm512_mask_broadcast_i32x4(a[i], 0x00f0, words(i + 4));
    a[i] = _mm512_mask_broadcast_i32x4(a[i], 0x0f00, words(i + 8));
    a[i] = _mm512_mask_broadcast_i32x4(a[i], 0xf000, words(i + 12));
  }
  const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Sixteen int8, which are byte `index` of 16 words, as float32 bits: bfloat16 in the upper half, zeros below.
template <int index>
inline __m512i byte_as_float(__m512i words) {
  const __m512i whole = _mm512_srai_epi32(index == 3 ? words : _mm512_slli_epi32(words, 24 - 8 * index), 24);
  return _mm512_castps_si512(_mm512_cvtepi32_ps(whole));
}
inline __m512i pair_halves(__m512i first, __m512i second) { return _mm512_or_si512(_mm512_srli_epi32(first, 16), second); }

inline void gather_keys(const Scratch& scratch, const BlockRows& rows, element* to) {
  const int64_t row_bytes = scratch.head_dim * (rows.int8 ? 1 : 2);
  const int64_t n_pairs = scratch.steps * 16;
  for (int64_t tile = 0; tile < 2; ++tile) {
    __m512i* pair = reinterpret_cast<__m512i*>(to + tile * n_pairs * 32);
    __m512i* const end = pair + n_pairs;
    for (int64_t offset = 0; offset < row_bytes; offset += 16) {
      __m512i words[4];
      transpose_words(rows.keys + tile * 16, offset, words);
      for (int w = 0; w < 4; ++w) {
        if (!rows.int8) {
          *pair++ = words[w];
          continue;
        }
        *pair++ = pair_halves(byte_as_float<0>(words[w]), byte_as_float<1>(words[w]));
        *pair++ = pair_halves(byte_as_float<2>(words[w]), byte_as_float<3>(words[w]));
      }
    }
    while (pair < end) *pair++ = _mm512_setzero_si512();
  }
}

// Sixteen values of two rows as pairs of bfloat16.
template <bool int8>
inline __m512i pair_values(const char* first, const char* second, int64_t col) {
  if (int8) {
    const auto wide = [&](const char* row) {
      const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + col * 16));
      return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(narrow)));
    };
    return pair_halves(wide(first), wide(second));
  }
  const auto wide = [&](const char* row) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + col * 32)));
  };
  return _mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16));
}

template <bool int8>
inline void gather_values_of(const Scratch& scratch, const BlockRows& rows, int64_t block) {
  for (int64_t col = 0; col < scratch.cols; ++col) {
    __m512i* const tile = reinterpret_cast<__m512i*>(scratch.v_tile(col, block));
    for (int64_t i = 0; i < 16; ++i)
      tile[i] = pair_values<int8>(rows.values[i], rows.values[i + 16], col);
  }
}

inline void gather_values(const Scratch& scratch, const BlockRows& rows, int64_t block) {
  rows.int8 ? gather_values_of<true>(scratch, rows, block) : gather_values_of<false>(scratch, rows, block);
}

#else

inline float wide_value(const BlockRows& rows, const char* row, int64_t i) {
  return rows.int8 ? static_cast<float>(reinterpret_cast<const int8_t*>(row)[i])
                   : from_bf16(reinterpret_cast<const uint16_t*>(row)[i]);
}

inline void gather_keys(const Scratch& scratch, const BlockRows& rows, element* to) {
  for (int64_t tile = 0; tile < 2; ++tile, to += 16 * scratch.head_dim)
    for (int64_t dim = 0; dim < scratch.head_dim; ++dim)
      for (int64_t j = 0; j < 16; ++j) to[dim * 16 + j] = wide_value(rows, rows.keys[tile * 16 + j], dim);
}

inline void gather_values(const Scratch& scratch, const BlockRows& rows, int64_t block) {
  element* const to = scratch.v_block(block);
  for (int64_t j = 0; j < kKeyBlock; ++j)
    for (int64_t dim = 0; dim < scratch.head_dim; ++dim)
      to[dim / 16 * kKeyBlock * 16 + j * 16 + dim % 16] = wide_value(rows, rows.values[j], dim);
}

#endif

}  // namespace sash::SASH_ISA
