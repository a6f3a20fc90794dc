// What one instruction set offers: filled once for each by isa_kernels.cpp.
#pragma once

#include <cstddef>

#include "attention.h"
#include "linear.h"
#include "rank.h"

namespace sash {

struct KernelTable {
  const char* name;
  // Around a region, on each thread.
  void (*enter)();
  void (*leave)();
  // Prepares row `row` of activations from `x`; `norm` may be null; `scratch` holds padded_k floats.
  void (*prepare_row)(const float* x, const Norm* norm, const Form& form, const Rows& rows, int64_t row,
                      float* scratch);
  // Fills prepared rows [from, to) with zeros.
  void (*clear_rows)(const Form& form, const Rows& rows, int64_t from, int64_t to);
  // Computes outputs of tiles [first, last) for rows [row, row + count); both ends are even for gated pairs.
  void (*multiply)(const Product& product, int64_t first, int64_t last, int64_t row, int64_t count);
  // The same of few rows, at most kTile, and all of them: kRuns runs of `count` tiles, side by side from `tile` on, `apart`
  // tiles from each other.
  void (*multiply_runs)(const Product& product, int64_t tile, int64_t count, int64_t apart);
  // x / rms(x) * weight.
  void (*normalise)(const float* x, const Norm& norm, int64_t k, float* out);
  // Normalises a head where the norm has a weight, and turns its pairs by their angles.
  void (*turn_head)(const float* x, const Norm& norm, const Angles& angles, int64_t head_dim, float* out);
  // Stores a head as bfloat16, or where `scale` is given as int8 with that scale.
  void (*keep_head)(const float* x, int64_t head_dim, char* to, float* scale);
  // Packs a row of int8 weights into its tile.
  void (*pack_row)(const float* x, int64_t k, int64_t padded_k, int64_t rotation, int64_t row, char* tile, float* scale,
                   float* scratch);
  // Row `row` of the weight that a linear stands for, any rotation undone, times `factor`: k numbers.
  void (*unpack_row)(const Linear& linear, int64_t row, float factor, float* out);
  // See attention.h.
  void (*attend_rows)(const AttentionTask& task, int64_t first_row, int64_t last_row, void* scratch);
  size_t (*attention_scratch_bytes)(int64_t head_dim);
  // See rank.h.
  void (*rank_blocks)(const RankTask& task);
  void (*share_blocks)(const ShareTask& task);
};

#ifdef SASH_HAVE_AMX
namespace amx {
const KernelTable& table();
}
#endif
#ifdef SASH_HAVE_AVX512
namespace avx512 {
const KernelTable& table();
}
#endif
#ifdef SASH_HAVE_AVX2
namespace avx2 {
const KernelTable& table();
}
#endif
namespace portable {
const KernelTable& table();
}

}  // namespace sash
