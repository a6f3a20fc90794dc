#include "scratch.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sash {

namespace {

// Large pages: activations of a long step touch thousands of small ones, again and again.
constexpr size_t kPage = 2 << 20;

}  // namespace

Scratch::~Scratch() { std::free(memory_); }

char* Scratch::room(size_t bytes) {
  if (bytes <= held_) return memory_;
  std::free(memory_);
  memory_ = nullptr;
  held_ = 0;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  memory_ = static_cast<char*>(std::aligned_alloc(kPage, size));
  if (memory_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory_, size, MADV_HUGEPAGE);  // A wish: without it pages are small, and all else is the same.
#endif
  held_ = size;
  return memory_;
}

}  // namespace sash
