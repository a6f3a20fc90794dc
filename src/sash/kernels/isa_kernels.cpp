// Compiled once for each instruction set, with SASH_ISA as the name of the namespace.
#include "table.h"

#define SASH_NAME(isa) SASH_TEXT(isa)
#define SASH_TEXT(text) #text

namespace sash::SASH_ISA {

const KernelTable &table();
const KernelTable &table() {
  static const KernelTable filled{SASH_NAME(SASH_ISA)};
  return filled;
}

}  // namespace sash::SASH_ISA
