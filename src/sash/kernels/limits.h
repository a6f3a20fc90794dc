// What this machine can do at most: loops that do nothing but read, and nothing but multiply. The speed of everything
// else is held against theirs (`sash bench`).
#pragma once

#include <cstdint>

namespace sash {

enum class Numbers : int { bf16 = 0, int8 = 1 };

struct LimitTable {
  // Reads all bytes, a multiple of 512; the result depends on each, so that none is left out.
  uint64_t (*read_memory)(const char* data, int64_t n_bytes);
  // Multiplies and adds numbers of a kind `rounds` times over in registers, on the way that the kernels take with this
  // instruction set. Returns how many multiplications and additions that were.
  int64_t (*multiply_numbers)(Numbers numbers, int64_t rounds);
};

#ifdef SASH_HAVE_AMX
namespace amx {
const LimitTable& limits();
}
#endif
#ifdef SASH_HAVE_AVX512
namespace avx512 {
const LimitTable& limits();
}
#endif
#ifdef SASH_HAVE_AVX2
namespace avx2 {
const LimitTable& limits();
}
#endif
namespace portable {
const LimitTable& limits();
}

}  // namespace sash
