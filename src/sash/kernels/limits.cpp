#include "limits.h"

#include <nanobind/nanobind.h>

#include <atomic>
#include <stdexcept>

#include "cpu.h"
#include "module.h"
#include "pool.h"

namespace nb = nanobind;

namespace sash {

namespace {

const LimitTable& limits_of(Isa isa) {
  switch (isa) {
#ifdef SASH_HAVE_AMX
    case Isa::amx: return amx::limits();
#endif
#ifdef SASH_HAVE_AVX512
    case Isa::avx512: return avx512::limits();
#endif
#ifdef SASH_HAVE_AVX2
    case Isa::avx2: return avx2::limits();
#endif
    case Isa::portable: return portable::limits();
    default: throw std::invalid_argument("no native kernels serve: SASH_ISA is 'none'");
  }
}

// Memory is handed out to threads by pieces of 256 KiB.
uint64_t read_memory(const char* data, int64_t n_bytes) {
  constexpr int64_t kPiece = 1 << 18;
  const LimitTable& table = limits_of(best_isa());
  std::atomic<uint64_t> result{0};
  Pool::shared().run([&](Team& team) {
    team.share((n_bytes + kPiece - 1) / kPiece, [&](int64_t piece) {
      const int64_t start = piece * kPiece, end = start + kPiece < n_bytes ? start + kPiece : n_bytes;
      result += table.read_memory(data + start, end - start);
    });
  });
  return result;
}

// On every thread so many rounds; returns the multiplications and additions of all.
int64_t multiply_numbers(Numbers numbers, int64_t rounds) {
  const LimitTable& table = limits_of(best_isa());
  std::atomic<int64_t> operations{0};
  Pool::shared().run([&](Team&) { operations += table.multiply_numbers(numbers, rounds); });
  return operations;
}

}  // namespace

void bind_limits(nb::module_& module) {
  module.def(
      "read_memory",
      [](uintptr_t data, int64_t n_bytes) { return read_memory(reinterpret_cast<const char*>(data), n_bytes); },
      nb::call_guard<nb::gil_scoped_release>());
  module.def(
      "multiply_numbers",
      [](int numbers, int64_t rounds) { return multiply_numbers(static_cast<Numbers>(numbers), rounds); },
      nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sash
