// Scratch memory that survives from call to call.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/ceil_div.h"
#include "../common/debug.h"

namespace sparsekern {

// A stack of buffers owned by the calling thread. PERF: allocating scratch anew in every call made
// the kernel clear fresh pages and cost up to ten times the arithmetic (128 x 1024 x 1024 at
// density 0.05: 1.7 ms instead of 0.2). At most kKeptBytes stay allocated between calls.
class ScratchStack {
 public:
  static constexpr int64_t kKeptBytes = int64_t(64) << 20;

  static ScratchStack& of_this_thread() {
    static thread_local ScratchStack stack;
    return stack;
  }

  ~ScratchStack() { release(); }

  void* take(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    // Every buffer on its own and no byte longer than asked, so that what lies behind it is guarded.
    void* own = nullptr;
    if (posix_memalign(&own, size_t(kAlignment), size_t(bytes)) != 0) refuse(bytes);
    chunks_.push_back({static_cast<char*>(own), bytes});
    return own;
#endif
    const int64_t size = round_up(bytes > 0 ? bytes : 1, kAlignment);
    if (chunks_.empty() || used_ + size > chunks_.back().size) {
      chunks_.push_back({allocate(size), size});
      used_ = 0;
    }
    void* memory = chunks_.back().data + used_;
    used_ += size;
    taken_ += size;
    return memory;
  }

  void enter() { ++depth_; }

  // When the outermost frame ends, several chunks become one of their joint size.
  void leave() {
    if (--depth_ > 0) return;
    const int64_t wanted = taken_;
    used_ = taken_ = 0;
    if (chunks_.size() <= 1 && (chunks_.empty() || chunks_.back().size <= kKeptBytes)) return;
    release();
    if (wanted <= kKeptBytes) chunks_.push_back({allocate(wanted), wanted});
  }

 private:
  static constexpr int64_t kAlignment = 64;
  struct Chunk {
    char* data;
    int64_t size;
  };

  [[noreturn]] static void refuse(int64_t bytes) {
    throw std::runtime_error("Expected " + std::to_string(bytes) +
                             " bytes of memory for packed activations to be free. Got none.");
  }
  static char* allocate(int64_t bytes) {
    void* memory = std::aligned_alloc(size_t(kAlignment), size_t(bytes));
    if (memory == nullptr) refuse(bytes);
    return static_cast<char*>(memory);
  }
  void release() {
    for (const Chunk& chunk : chunks_) std::free(chunk.data);
    chunks_.clear();
  }

  std::vector<Chunk> chunks_;
  int64_t used_ = 0;   // bytes of the last chunk
  int64_t taken_ = 0;  // bytes of the whole call
  int depth_ = 0;
};

// The scratch of one op call; memory is valid until the frame ends. Only the calling thread takes.
class ScratchFrame {
 public:
  ScratchFrame() : stack_(ScratchStack::of_this_thread()) { stack_.enter(); }
  ~ScratchFrame() { stack_.leave(); }
  ScratchFrame(const ScratchFrame&) = delete;
  ScratchFrame& operator=(const ScratchFrame&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* memory = static_cast<T*>(stack_.take(count * int64_t(sizeof(T))));
    if (is_debugging()) std::fill_n(memory, count, std::numeric_limits<T>::quiet_NaN());
    return memory;
  }

 private:
  ScratchStack& stack_;
};

}  // namespace sparsekern
