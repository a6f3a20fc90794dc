// What one instruction set offers: filled once for each by isa_kernels.cpp.
#pragma once

namespace sash {

struct KernelTable {
  const char *name;
};

#ifdef SASH_HAVE_AMX
namespace amx {
const KernelTable &table();
}
#endif
#ifdef SASH_HAVE_AVX512
namespace avx512 {
const KernelTable &table();
}
#endif
#ifdef SASH_HAVE_AVX2
namespace avx2 {
const KernelTable &table();
}
#endif
namespace portable {
const KernelTable &table();
}

}  // namespace sash
