// The tile registers of AMX. Inline assembly rather than the compiler's intrinsics: GCC before 14 does not know that
// those read memory, and moves stores past them.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__)

namespace sash::SASH_ISA {

// All eight tiles have 16 rows of 64 bytes; every kernel uses this configuration, and zero rows where it has fewer.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void tile_config() {
  const TileConfig config;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void tile_release() { asm volatile("tilerelease" ::: "memory"); }

template <int tile>
inline void tile_load(const void* from, int64_t stride = 64) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void tile_store(void* to, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// c += a * b: c float32 [16][16], a bfloat16 [16][32], b bfloat16 [16][16][2].
template <int c, int a, int b>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
// c += a * b: c int32 [16][16], a int8 [16][64], b int8 [16][16][4].
template <int c, int a, int b>
inline void tile_dot_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

}  // namespace sash::SASH_ISA

#endif
