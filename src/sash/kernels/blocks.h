// ggml's quantised blocks into packed weights, without a float copy of more than a row. Layouts of the blocks:
// checkpoint/dequantize.py, which defines what they stand for; of packed weights: layout.py.
#pragma once

#include <cstdint>

namespace sash {

// Storage types, by ggml's own numbers.
enum class Stored : int { q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14 };

struct StoredRows {
  Stored kind;
  const uint8_t* rows;
  int64_t n_rows, k;

  // Throws for a type that is not read.
  int64_t row_bytes() const;
  // Row `row` as floats, k of them; false where one is not finite.
  bool floats(int64_t row, float* out) const;
};

// A weight's tiles that rows go to: every `step`-th from the first on. Scales and minima as `Linear` has them.
struct PackedTiles {
  char* data;
  float* scale8 = nullptr;
  uint16_t* scale4 = nullptr;
  uint16_t* minimum = nullptr;
  int64_t step = 1;
};

// Packs tile `tile` of 16 rows of 4 bits (q4_0, q4_1, q4_k) as int4 of groups of 32: levels stay what they are. False
// where a scale is not finite in float16.
bool pack_levels(const StoredRows& stored, int64_t tile, const PackedTiles& into);

}  // namespace sash
