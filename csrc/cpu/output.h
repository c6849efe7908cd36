// Large fresh tensors for results, in memory that is used again.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "../common/debug.h"

#if defined(__linux__)
#include <sys/mman.h>

// Of libtorch >= 2.11; in an older one it is missing, and the pointer is null.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace sparsekern {

// Memory of results that were freed, at most SPARSEKERN_KEEP_MB (512; checked by _extension.py) of
// it, oldest dropped first.
// PERF: malloc hands results of more than 32 MB back to the kernel and gets cleared pages for the
// next, so that the faults cost more than the arithmetic: copying 33 MB takes 8.7 ms into
// fresh memory and 1.4 ms into memory that has been written before (Zen 5, two threads).
class KeptMemory {
 public:
  struct Block {
    void* data;
    int64_t size;
  };

  static constexpr int64_t kLeast = int64_t(4) << 20;  // malloc reuses smaller ones by itself

  static KeptMemory& instance() {
    static auto* memory = new KeptMemory;  // outlives every tensor
    return *memory;
  }

  // SAFETY: no thread ever waits here, so a fork while another thread holds the lock does no harm.
  Block take(int64_t bytes) {
    const int64_t wanted = round_up_to_huge(bytes);
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      for (size_t i = kept_.size(); i-- > 0;) {
        const Block block = kept_[i];
        if (block.size < wanted || block.size > wanted + wanted / 8) continue;
        kept_.erase(kept_.begin() + std::ptrdiff_t(i));
        kept_bytes_ -= block.size;
        return block;
      }
      lock.unlock();
    }
    void* data = std::aligned_alloc(size_t(kHuge), size_t(wanted));
#if defined(MADV_HUGEPAGE)
    if (data != nullptr) madvise(data, size_t(wanted), MADV_HUGEPAGE);
#endif
    return {data, wanted};
  }

  void give_back(Block block) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || block.size > limit_) return std::free(block.data);
    kept_.push_back(block);
    kept_bytes_ += block.size;
    size_t dropped = 0;
    for (; kept_bytes_ > limit_; ++dropped) {
      kept_bytes_ -= kept_[dropped].size;
      std::free(kept_[dropped].data);
    }
    kept_.erase(kept_.begin(), kept_.begin() + std::ptrdiff_t(dropped));
  }

 private:
  static constexpr int64_t kHuge = int64_t(2) << 20;
  static int64_t round_up_to_huge(int64_t bytes) { return (bytes + kHuge - 1) / kHuge * kHuge; }
  static int64_t limit() {
    const char* megabytes = std::getenv("SPARSEKERN_KEEP_MB");
    return (megabytes != nullptr ? std::atoll(megabytes) : 512) << 20;
  }

  std::mutex mutex_;
  std::vector<Block> kept_;
  int64_t kept_bytes_ = 0;
  const int64_t limit_ = limit();
};

// What the shim needs to know of a dtype; `size` 0: not a float type.
struct FloatType {
  int64_t size;
  int32_t code;

  static FloatType of(torch::headeronly::ScalarType dtype) {
    using torch::headeronly::ScalarType;
    if (dtype == ScalarType::Float) return {4, aoti_torch_dtype_float32()};
    if (dtype == ScalarType::Double) return {8, aoti_torch_dtype_float64()};
    if (dtype == ScalarType::BFloat16) return {2, aoti_torch_dtype_bfloat16()};
    if (dtype == ScalarType::Half) return {2, aoti_torch_dtype_float16()};
    return {0, 0};
  }
};

// An uninitialised tensor on the CPU: contiguous, or channels_last, which takes four dimensions and a
// float type.
inline torch::stable::Tensor empty_output(const std::vector<int64_t>& sizes,
                                          torch::headeronly::ScalarType dtype,
                                          bool channels_last = false) {
  const FloatType type = FloatType::of(dtype);
  const auto dim = int64_t(sizes.size());
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  if (channels_last) {
    strides[1] = 1;
    strides[3] = sizes[1];
    strides[2] = strides[3] * sizes[3];
  }
  AtenTensorHandle handle = nullptr;
#if defined(__linux__)
  int64_t bytes = type.size;
  for (int64_t size : sizes) bytes *= size;
  if (bytes >= KeptMemory::kLeast && torch_from_blob != nullptr) {
    const KeptMemory::Block taken = KeptMemory::instance().take(bytes);
    if (taken.data != nullptr) {
      auto block = std::make_unique<KeptMemory::Block>(taken);
      const auto give_back = [](void*, void* context) {
        const std::unique_ptr<KeptMemory::Block> owned(static_cast<KeptMemory::Block*>(context));
        KeptMemory::instance().give_back(*owned);
      };
      const AOTITorchError error = torch_from_blob(
          taken.data, dim, sizes.data(), strides.data(), 0, type.code, aoti_torch_device_type_cpu(),
          -1, &handle, aoti_torch_layout_strided(), nullptr, 0, give_back, block.get());
      if (error == 0) {
        block.release();
        if (is_debugging()) std::memset(taken.data, 0xff, size_t(bytes));  // NaN
        return torch::stable::Tensor(handle);
      }
      KeptMemory::instance().give_back(taken);
    }
  }
#endif
  if (!channels_last) return torch::stable::empty(sizes, dtype);
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes.data(), strides.data(), type.code,
                                                  aoti_torch_device_type_cpu(), -1, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace sparsekern
