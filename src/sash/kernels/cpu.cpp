#include "cpu.h"

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SASH_X86 1
#include <cpuid.h>
#endif
#if defined(SASH_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sash {
namespace {

constexpr Isa kBestFirst[] = {Isa::amx, Isa::avx512, Isa::avx2, Isa::portable};

#ifdef SASH_X86

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf found;
  if (!__get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx)) return Leaf{};
  return found;
}

bool all(uint32_t flags, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (!((flags >> bit) & 1u)) return false;
  return true;
}

/// The register files that the system saves when it switches threads (XCR0); 0 where it cannot be asked.
uint64_t saved_registers(const Leaf &one) {
  constexpr int kOsxsave = 27;
  if (!all(one.ecx, {kOsxsave})) return 0;
  uint32_t low, high;
  // The instruction itself: its intrinsic needs -mxsave, and this file is compiled for every x86-64.
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

/// Linux gives tiles only to processes that ask; permission holds for all threads, and asking again is harmless.
bool tiles_permitted() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xE0, kTiles = 0x60000;
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const uint64_t saved = saved_registers(one);
  // Leaf 1 ecx: FMA 12, POPCNT 23, AVX 28, F16C 29. Leaf 7 ebx: BMI1 3, AVX2 5, BMI2 8.
  if ((saved & kYmm) != kYmm || !all(one.ecx, {12, 23, 28, 29}) || !all(seven.ebx, {3, 5, 8})) return Isa::portable;
  // Leaf 7 ebx: AVX-512 F 16, DQ 17, BW 30, VL 31; ecx: VNNI 11.
  if ((saved & kZmm) != kZmm || !all(seven.ebx, {16, 17, 30, 31}) || !all(seven.ecx, {11})) return Isa::avx2;
  // Leaf 7 edx: AMX bf16 22, tile 24, int8 25. Leaf 7.1 eax: AVX-512 BF16 5.
  if ((saved & kTiles) != kTiles || !all(seven.edx, {22, 24, 25}) || !all(seven_one.eax, {5})) return Isa::avx512;
  return tiles_permitted() ? Isa::amx : Isa::avx512;
}

#else

Isa detect() { return Isa::portable; }

#endif

std::string names_available() {
  std::string names;
  for (Isa isa : available_isas()) names += std::string(isa_name(isa)) + ", ";
  return names + "none";
}

}  // namespace

const char *isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      return "portable";
    case Isa::none:
      break;
  }
  return "none";
}

bool cpu_has(Isa isa) {
  static const Isa best = detect();  // once a process, and safe from several threads
  return isa <= best;
}

bool built_with(Isa isa) {
  switch (isa) {
    case Isa::amx:
#ifdef SASH_HAVE_AMX
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef SASH_HAVE_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx2:
#ifdef SASH_HAVE_AVX2
      return true;
#else
      return false;
#endif
    case Isa::portable:
    case Isa::none:
      break;
  }
  return true;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : kBestFirst)
    if (built_with(isa) && cpu_has(isa)) found.push_back(isa);
  return found;
}

Isa best_isa() {
  const std::vector<Isa> usable = available_isas();
  const char *forced = std::getenv("SASH_ISA");
  if (forced == nullptr || *forced == '\0') return usable.front();
  const std::string name = forced;
  if (name == isa_name(Isa::none)) return Isa::none;
  for (Isa isa : usable)
    if (name == isa_name(isa)) return isa;
  for (Isa isa : kBestFirst) {
    if (name != isa_name(isa)) continue;
    throw std::invalid_argument("SASH_ISA=" + name + (built_with(isa) ? " is beyond this processor or its system"
                                                                       : " is not part of this build") +
                                "; available here: " + names_available());
  }
  throw std::invalid_argument("SASH_ISA=" + name + " is not an instruction set; available here: " + names_available());
}

}  // namespace sash
