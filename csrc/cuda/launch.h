// What every launch needs: the device, torch's current stream, and whether it was accepted. A host
// compiler sees the CPU as the device, for tests of the ops' files (tests/cuda/test_ops_on_host.py).
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <dlfcn.h>
#define SPARSEKERN_DEVICE_KEY CUDA
#else
#define SPARSEKERN_DEVICE_KEY CPU
#endif

namespace sparsekern {

constexpr auto kDeviceType = torch::headeronly::DeviceType::SPARSEKERN_DEVICE_KEY;

inline bool is_on_device(const torch::stable::Tensor& t) {
  return t.device().type() == kDeviceType;
}

#if defined(__CUDACC__)

// NOTE: found at run time: this function is in libtorch_cuda.so alone, which this library is neither
// linked with, as the torch that builds it may lack it, nor made to need, so that it loads everywhere.
inline cudaStream_t current_stream(int32_t device) {
  using Function = decltype(&aoti_torch_get_current_cuda_stream);
  static const Function get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found =
        torch_cuda == nullptr ? nullptr : dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Function>(found);
  }();
  SPARSEKERN_CHECK(get != nullptr,
                   "Expected a torch that was built with CUDA. Got one without libtorch_cuda.so.");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// The device and stream of the launches that follow, until it goes.
class Launches {
 public:
  explicit Launches(int32_t device)
      : guard_(device), device_(device), stream_(current_stream(device)) {}

  cudaStream_t stream() const { return stream_; }

  // After each launch. NOTE: it does not wait; what fails later is reported by a later call.
  void check(const char* kernel) const {
    const cudaError_t error = cudaGetLastError();
    SPARSEKERN_CHECK(error == cudaSuccess, "Expected ", kernel, " to be launched on cuda:", device_,
                     ". Got: ", cudaGetErrorString(error),
                     ". SPARSEKERN_CUDA=0 in the environment does without CUDA C++.");
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
  cudaStream_t stream_;
};

#else

class Launches {
 public:
  explicit Launches(int32_t) {}
  void* stream() const { return nullptr; }
  void check(const char*) const {}
};

#endif

}  // namespace sparsekern
