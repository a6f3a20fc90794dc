// Products with packed weights: what they are made of, whatever the instruction set. Layouts: layout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sash {

constexpr int64_t kTile = 16;   // Outputs of a tile of weights, and rows of a tile of activations.
constexpr int64_t kBlock = 64;  // What the number of inputs is padded to a multiple of.

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Kind : int { bf16 = 0, int8 = 1, int4 = 2 };

struct Linear {
  Kind kind;
  int64_t n, k;                    // Outputs and inputs before padding.
  const void* data;
  const float* scale8 = nullptr;   // int8, and int4 with multipliers: one an output.
  const uint16_t* scale4 = nullptr;  // int4: float16 [tile][group][16].
  const uint16_t* minimum = nullptr;
  const int8_t* multiplier = nullptr;  // int4 with a float32 scale an output: [tile][group][16], -15 to 16.
  int64_t group = 0;               // int4: inputs that share a scale or a multiplier.
  int64_t rotation = 1;            // Inputs that are mixed before they meet the weight.
  const float* bias = nullptr;

  int64_t tiles() const { return ceil_div(n, kTile); }
  int64_t padded_k() const { return ceil_div(k, kBlock) * kBlock; }
  // Blocks of 64 bytes a row: what one step of a tile product takes.
  int64_t blocks() const { return kind == Kind::bf16 ? padded_k() / 32 : padded_k() / 64; }
  // Groups of inputs whose sums of activations count, and groups that have a scale of their own.
  int64_t groups() const { return kind == Kind::int4 ? padded_k() / group : 1; }
  int64_t scale_groups() const { return multiplier != nullptr ? 1 : groups(); }
  int64_t tile_bytes() const { return blocks() * (kind == Kind::int4 ? 512 : 1024); }
  const char* tile(int64_t index) const { return static_cast<const char*>(data) + index * tile_bytes(); }
};

// What a row of activations is prepared for; linears of one form share prepared rows.
struct Form {
  Kind kind;
  int64_t k, padded_k, group, groups, scale_groups, rotation;

  explicit Form(const Linear& linear)
      : kind(linear.kind), k(linear.k), padded_k(linear.padded_k()), group(linear.group), groups(linear.groups()),
        scale_groups(linear.scale_groups()), rotation(linear.rotation) {}
  int64_t row_bytes() const { return kind == Kind::bf16 ? padded_k * 2 : padded_k; }
};

constexpr int64_t kRuns = 4;      // Runs of weights that a thread reads side by side where few rows meet them.
constexpr int64_t kFewRows = 32;  // So many rows meet weights that stream by; more meet panels of them.
constexpr int64_t kDepth = 32;    // Blocks of a panel of many long rows: 256 rows of one stay in the second-level cache.

// Prepared rows: values in tiles of 16 rows, [panel][tile][block of 64 bytes][row][64 bytes]; a panel has kDepth blocks,
// or all where there are at most two panels of them or few rows. Integers have for each row and group a scale, the sum of
// the quantised values, and their product, [tile][group][row]. Where one scale serves a whole row, it is that of group 0
// of one.
struct Rows {
  char* values = nullptr;
  int64_t tiles = 0;
  int64_t blocks = 0, depth = 0;  // Blocks of a row, and of a panel.
  float* scale = nullptr;
  float* scaled_sum = nullptr;
  int32_t* sum = nullptr;

  static size_t bytes(const Form& form, int64_t n_rows) {
    const int64_t padded = ceil_div(n_rows, kTile) * kTile;
    return static_cast<size_t>(padded * form.row_bytes() + 3 * ceil_div(padded * form.groups * 4, 64) * 64);
  }
  static Rows in(char* memory, const Form& form, int64_t n_rows) {
    const int64_t padded = ceil_div(n_rows, kTile) * kTile;
    const int64_t each = ceil_div(padded * form.groups * 4, 64) * 64;
    const bool many = n_rows > kFewRows && form.scale_groups == 1;
    Rows rows;
    rows.values = memory;
    rows.tiles = padded / kTile;
    rows.blocks = form.row_bytes() / 64;
    rows.depth = many && rows.blocks > 2 * kDepth ? kDepth : rows.blocks;
    memory += padded * form.row_bytes();
    rows.scale = reinterpret_cast<float*>(memory);
    rows.scaled_sum = reinterpret_cast<float*>(memory + each);
    rows.sum = reinterpret_cast<int32_t*>(memory + 2 * each);
    return rows;
  }
  static int64_t index(int64_t groups, int64_t row, int64_t group) {
    return (row / kTile * groups + group) * kTile + row % kTile;
  }
  // Blocks from `first` on, which begins a panel, that lie side by side.
  int64_t width(int64_t first) const { return blocks - first < depth ? blocks - first : depth; }
  char* at(int64_t row, int64_t block) const {
    const int64_t first = depth == blocks ? 0 : block / kDepth * kDepth;
    return values + ((first * tiles + row / kTile * width(first) + block - first) * kTile + row % kTile) * 64;
  }
};

// Root mean square normalisation: x / rms(x) * weight, the weight with any offset already added.
struct Norm {
  const float* weight = nullptr;
  float eps = 0;
};

// The cosine and sine of each pair of a head's components, and which components are a pair: neighbours, or those half a
// head apart; `mixing` components are then mixed with each other (see `rotate`), 1 for none.
struct Angles {
  const float *cos, *sin;
  bool interleaved;
  int64_t mixing;
};

enum class Activation : int { silu = 0, gelu_tanh = 1 };

// What happens to a product [row][output]: it is stored, or added to what is there, or (a gated pair of weights whose
// tiles alternate) combined to act(even tile) * odd tile.
enum class Finish : int { store = 0, add = 1, gate = 2 };

struct Product {
  const Linear* linear;
  Rows rows;
  int64_t n_rows;
  float* out;
  int64_t out_stride;
  Finish finish = Finish::store;
  Activation activation = Activation::silu;
  Rows into = {};  // Where a gated product goes instead of `out`, rounded to bfloat16: rows of the next product.
};

}  // namespace sash
