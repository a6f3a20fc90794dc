// Memory that the phases of a step work in.
#pragma once

#include <cstddef>
#include <vector>

namespace sash {

// Cuts memory into parts aligned to 64 bytes.
class Carver {
 public:
  explicit Carver(char* from) : at_(from) {}
  template <class T>
  T* take(size_t count) {
    T* part = reinterpret_cast<T*>(at_);
    at_ += (count * sizeof(T) + 63) / 64 * 64;
    return part;
  }
  // A part for each thread.
  template <class T>
  std::vector<T*> take_each(int n_threads, size_t count) {
    std::vector<T*> parts;
    for (int thread = 0; thread < n_threads; ++thread) parts.push_back(take<T>(count));
    return parts;
  }
  size_t used(const char* from) const { return static_cast<size_t>(at_ - from); }

 private:
  char* at_;
};

// Memory of a step that lives on to the next one.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // Calls `cut` with a carver twice: first to see how much it takes, then for memory of that size, aligned to 64 bytes.
  // What was there before is lost where it grows.
  template <class Cut>
  void carve(const Cut& cut) {
    Carver measure(nullptr);
    cut(measure);
    Carver carver(room(measure.used(nullptr)));
    cut(carver);
  }

 private:
  char* room(size_t bytes);

  char* memory_ = nullptr;
  size_t held_ = 0;
};

}  // namespace sash
