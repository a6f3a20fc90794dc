#include "blocks.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "linear.h"
#include "step.h"

namespace sash {

namespace {

constexpr int64_t kGroup = 32;  // Inputs that share a scale in all types of 4 bits.

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float half_at(const uint8_t* from) {
  const uint32_t bits = from[0] | static_cast<uint32_t>(from[1]) << 8;
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 5.9604644775390625e-08f;  // 2^-24
    return sign ? -value : value;
  }
  return bits_to_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}

// Rounded to the nearest, ties to even; infinity beyond the range.
uint16_t to_half(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000;
  uint32_t size = bits & 0x7fffffff;
  if (size >= 0x47800000) return static_cast<uint16_t>(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (size < 0x38800000) {
    // Below the normal numbers of float16 a step is 2^-24, as it is for floats from a half on.
    size = float_to_bits(bits_to_float(size) + 0.5f) - float_to_bits(0.5f);
    return static_cast<uint16_t>(sign | size);
  }
  size += (size >> 13 & 1) + 0xfff - (112u << 23);
  return static_cast<uint16_t>(sign | size >> 13);
}
bool finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// Scale and minimum of each of the eight sub-blocks of Q4_K and Q5_K.
void scales_and_minima(const uint8_t* block, float* scale, float* minimum) {
  const float d = half_at(block), low = half_at(block + 2);
  const uint8_t *first_d = block + 4, *first_m = block + 8, *last = block + 12;
  for (int i = 0; i < 4; ++i) {
    scale[i] = static_cast<float>(first_d[i] & 63) * d;
    minimum[i] = static_cast<float>(first_m[i] & 63) * low;
    scale[i + 4] = static_cast<float>((last[i] & 15) | (first_d[i] >> 2 & 48)) * d;
    minimum[i + 4] = static_cast<float>(last[i] >> 4 | (first_m[i] >> 2 & 48)) * low;
  }
}

// One block each, in the order of operations of dequantize.py.
void q4_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((block[2 + i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((block[2 + i] >> 4) - 8) * d;
  }
}

void q4_1(const uint8_t* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(block[4 + i] & 15) * d + m;
    out[i + 16] = static_cast<float>(block[4 + i] >> 4) * d + m;
  }
}

void q5_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  uint32_t fifth;
  std::memcpy(&fifth, block + 2, 4);
  for (int i = 0; i < 16; ++i) {
    const int low = (block[6 + i] & 15) | static_cast<int>(fifth >> i & 1) << 4;
    const int high = block[6 + i] >> 4 | static_cast<int>(fifth >> (i + 16) & 1) << 4;
    out[i] = static_cast<float>(low - 16) * d;
    out[i + 16] = static_cast<float>(high - 16) * d;
  }
}

void q5_1(const uint8_t* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  uint32_t fifth;
  std::memcpy(&fifth, block + 4, 4);
  for (int i = 0; i < 16; ++i) {
    const int low = (block[8 + i] & 15) | static_cast<int>(fifth >> i & 1) << 4;
    const int high = block[8 + i] >> 4 | static_cast<int>(fifth >> (i + 16) & 1) << 4;
    out[i] = static_cast<float>(low) * d + m;
    out[i + 16] = static_cast<float>(high) * d + m;
  }
}

void q8_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
}

void q2_k(const uint8_t* block, float* out) {
  const float d = half_at(block + 80), low = half_at(block + 82);
  for (int sub = 0; sub < 16; ++sub) {
    const float scale = static_cast<float>(block[sub] & 15) * d, minimum = static_cast<float>(block[sub] >> 4) * low;
    const uint8_t* q = block + 16 + sub / 8 * 32 + sub % 2 * 16;
    const int shift = sub % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) out[16 * sub + i] = static_cast<float>(q[i] >> shift & 3) * scale - minimum;
  }
}

void q3_k(const uint8_t* block, float* out) {
  const float d = half_at(block + 108);
  const uint8_t* packed = block + 96;
  for (int sub = 0; sub < 16; ++sub) {
    const int low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
    const int scale = (low | (packed[8 + sub % 4] >> (sub / 4 * 2) & 3) << 4) - 32;
    const float step = static_cast<float>(scale) * d;
    const uint8_t *q = block + 32 + sub / 8 * 32 + sub % 2 * 16, *high = block + sub % 2 * 16;
    const int shift = sub % 8 / 2 * 2;
    // A high bit that is not set stands for -4.
    for (int i = 0; i < 16; ++i)
      out[16 * sub + i] = static_cast<float>(((q[i] >> shift & 3) | (high[i] >> (sub / 2) & 1) << 2) - 4) * step;
  }
}

void q4_k(const uint8_t* block, float* out) {
  float scale[8], minimum[8];
  scales_and_minima(block, scale, minimum);
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint8_t* q = block + 16 + 32 * chunk;
    float* to = out + 64 * chunk;
    for (int i = 0; i < 32; ++i) to[i] = static_cast<float>(q[i] & 15) * scale[2 * chunk] - minimum[2 * chunk];
    for (int i = 0; i < 32; ++i) to[32 + i] = static_cast<float>(q[i] >> 4) * scale[2 * chunk + 1] - minimum[2 * chunk + 1];
  }
}

void q5_k(const uint8_t* block, float* out) {
  float scale[8], minimum[8];
  scales_and_minima(block, scale, minimum);
  const uint8_t* fifth = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const uint8_t* q = block + 48 + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i)
      out[32 * sub + i] =
          static_cast<float>((q[i] >> shift & 15) | (fifth[i] >> sub & 1) << 4) * scale[sub] - minimum[sub];
  }
}

void q6_k(const uint8_t* block, float* out) {
  const float d = half_at(block + 208);
  for (int sub = 0; sub < 16; ++sub) {
    const float step = static_cast<float>(static_cast<int8_t>(block[192 + sub])) * d;
    const int half = sub / 8, within = sub % 8 * 16;  // `within` counts values of the half.
    const uint8_t *low = block + 64 * half + within % 64, *high = block + 128 + 32 * half + within % 32;
    const int shift = within / 64 * 4, high_shift = within / 32 * 2;
    for (int i = 0; i < 16; ++i)
      out[16 * sub + i] = static_cast<float>(((low[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4) - 32) * step;
  }
}

struct Reader {
  int64_t values, bytes;
  void (*read)(const uint8_t* block, float* out);
};

Reader reader_of(Stored kind) {
  switch (kind) {
    case Stored::q4_0: return {32, 18, q4_0};
    case Stored::q4_1: return {32, 20, q4_1};
    case Stored::q5_0: return {32, 22, q5_0};
    case Stored::q5_1: return {32, 24, q5_1};
    case Stored::q8_0: return {32, 34, q8_0};
    case Stored::q2_k: return {256, 84, q2_k};
    case Stored::q3_k: return {256, 110, q3_k};
    case Stored::q4_k: return {256, 144, q4_k};
    case Stored::q5_k: return {256, 176, q5_k};
    case Stored::q6_k: return {256, 210, q6_k};
  }
  throw std::invalid_argument("a storage type that is not read");
}

// Sixteen bytes, each with a value of two groups of inputs: two quads of a tile's lines for every four of them.
void place(const uint8_t* bytes, int64_t count, int64_t row, char* block) {
  for (int64_t quad = 0; quad < count / 4; ++quad) std::memcpy(block + quad * 64 + row * 4, bytes + quad * 4, 4);
}

}  // namespace

int64_t StoredRows::row_bytes() const {
  const Reader reader = reader_of(kind);
  return k / reader.values * reader.bytes;
}

bool StoredRows::floats(int64_t row, float* out) const {
  const Reader reader = reader_of(kind);
  const uint8_t* from = rows + row * row_bytes();
  for (int64_t at = 0; at < k; at += reader.values, from += reader.bytes) reader.read(from, out + at);
  uint32_t worst = 0;
  for (int64_t i = 0; i < k; ++i) worst = std::max(worst, float_to_bits(out[i]) & 0x7fffffff);
  return worst < 0x7f800000;
}

bool pack_levels(const StoredRows& stored, int64_t tile, const PackedTiles& into) {
  const int64_t blocks = ceil_div(stored.k, kBlock), groups = 2 * blocks, held = stored.k / kGroup;
  char* data = into.data + tile * into.step * blocks * 512;
  uint16_t* scale = into.scale4 + tile * into.step * groups * kTile;
  uint16_t* minimum = into.minimum ? into.minimum + tile * into.step * groups * kTile : nullptr;
  bool finite = true;
  for (int64_t row = 0; row < kTile; ++row) {
    const int64_t index = tile * kTile + row;
    const bool there = index < stored.n_rows;
    const uint8_t* from = there ? stored.rows + index * stored.row_bytes() : nullptr;
    float scales[8], minima[8];
    for (int64_t group = 0; group < groups; ++group) {
      float s = 0, m = 0;
      if (!there || group >= held) {
      } else if (stored.kind == Stored::q4_k) {
        if (group % 8 == 0) scales_and_minima(from + group / 8 * 144, scales, minima);
        s = scales[group % 8];
        m = 8.0f * s - minima[group % 8];
      } else if (stored.kind == Stored::q4_1) {
        s = half_at(from + group * 20);
        m = half_at(from + group * 20 + 2) + 8.0f * s;
      } else {
        s = half_at(from + group * 18);
      }
      scale[group * kTile + row] = to_half(s);
      finite = finite && finite_half(to_half(s));
      if (minimum == nullptr) continue;
      minimum[group * kTile + row] = to_half(m);
      finite = finite && finite_half(to_half(m));
    }
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t bytes[32];
      std::memset(bytes, 0x88, 32);  // A nibble stands for its value less 8, and padding for zeros.
      if (there && stored.kind == Stored::q4_k) {
        std::memcpy(bytes, from + block / 4 * 144 + 16 + block % 4 * 32, 32);
      } else if (there) {
        const int64_t size = stored.kind == Stored::q4_1 ? 20 : 18, second = 2 * block + 1;
        const uint8_t* a = from + 2 * block * size + size - 16;
        uint8_t b[16];
        std::memset(b, 0x88, 16);
        if (second < held) std::memcpy(b, from + second * size + size - 16, 16);
        for (int i = 0; i < 16; ++i) {
          bytes[i] = static_cast<uint8_t>((a[i] & 15) | b[i] << 4);
          bytes[i + 16] = static_cast<uint8_t>(a[i] >> 4 | (b[i] & 0xf0));
        }
      }
      place(bytes, 32, row, data + block * 512);
    }
  }
  return finite;
}

bool Stepper::pack_blocks(const StoredRows& stored, int64_t rotation, const PackedTiles& into) {
  const int64_t padded_k = ceil_div(stored.k, kBlock) * kBlock, floats = padded_k + stored.k;
  std::vector<std::vector<float>> scratch(static_cast<size_t>(pool_.size()), std::vector<float>(static_cast<size_t>(floats)));
  stored.row_bytes();  // An unknown type is refused here, and not in a thread.
  std::atomic<bool> finite{true};
  region([&](Team& team) {
    float* x = scratch[static_cast<size_t>(team.index())].data();
    team.share(ceil_div(stored.n_rows, kTile), [&](int64_t tile) {
      if (into.scale4 != nullptr) {
        if (!pack_levels(stored, tile, into)) finite = false;
        return;
      }
      char* data = into.data + tile * into.step * padded_k * kTile;
      float* scale = into.scale8 + tile * into.step * kTile;
      for (int64_t row = 0; row < kTile; ++row) {
        if (tile * kTile + row < stored.n_rows) {
          if (!stored.floats(tile * kTile + row, x)) finite = false;
        } else {
          std::fill(x, x + stored.k, 0.0f);
        }
        table_.pack_row(x, stored.k, padded_k, rotation, row, data, scale + row, x + stored.k);
      }
    });
  });
  return finite;
}

}  // namespace sash
