// Memory on a boundary of 64 bytes, zeroed; pages that are never touched cost nothing.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace edgeqat {

// Huge pages save page walks; small ones cost no more memory than is touched.
enum class Pages { huge, small };

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size, Pages pages = Pages::huge) : size_(size) {
    if (size == 0) return;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
    void* memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    const int advice = pages == Pages::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    if (bytes() >= kLarge) madvise(memory, bytes(), advice);
    data_ = static_cast<T*>(memory);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) munmap(data_, bytes());
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t index) { return data_[index]; }
  const T& operator[](int64_t index) const { return data_[index]; }

 private:
  static constexpr std::size_t kLarge = std::size_t(1) << 22;

  std::size_t bytes() const { return std::size_t(size_) * sizeof(T); }
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace edgeqat
