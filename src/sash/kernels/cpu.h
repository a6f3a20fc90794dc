// Which instruction sets this machine, its system and this build can use, and which one serves.
#pragma once

#include <vector>

namespace sash {

/// Instruction sets of the kernels in ascending order; each includes the ones before it.
///   portable  plain C++
///   avx2      AVX2, FMA, F16C
///   avx512    AVX-512 F, BW, DQ, VL, VNNI
///   amx       avx512, AVX-512 BF16, AMX tile, int8, bf16
enum class Isa { none, portable, avx2, avx512, amx };

/// The name by which SASH_ISA asks for it.
const char *isa_name(Isa isa);

/// Whether the processor has the instruction set and the system saves its registers. For amx the first call asks the
/// system for permission to use tiles, for all threads of the process. `none` is always true.
bool cpu_has(Isa isa);

/// Whether this build contains kernels for the instruction set. `none` is always true.
bool built_with(Isa isa);

/// What is both built and usable here, best first; never holds `none`, always holds `portable`.
std::vector<Isa> available_isas();

/// The instruction set that serves: the best one available, or the one that the environment variable SASH_ISA names
/// ("none" keeps native kernels from serving at all). Read anew at each call.
/// Throws std::invalid_argument where SASH_ISA names something unknown or not available, with what is available.
Isa best_isa();

}  // namespace sash
