// Element types on the GPU: widened to what is computed with, and rounded back to nearest even.
// The host, where kernels are tested, goes by common/dtype.h. Torch-free.
#pragma once
#include <type_traits>

#include "../common/dtype.h"
#include "../common/inline.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sparsekern {

// What weights of type E are computed in: float, double for double.
template <typename E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

template <typename E>
SPARSEKERN_HOST_DEVICE Compute<E> to_compute(E x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<E, Half>) return __half2float(__ushort_as_half(x.bits));
  if constexpr (std::is_same_v<E, BFloat16>) return __uint_as_float(uint32_t(x.bits) << 16);
  if constexpr (!std::is_class_v<E>) return x;
#else
  return widen(x);
#endif
}

template <typename E>
SPARSEKERN_HOST_DEVICE E from_compute(Compute<E> x) {
  E result;
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<E, Half>) result.bits = __half_as_ushort(__float2half_rn(x));
  if constexpr (std::is_same_v<E, BFloat16>) {
    result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  }
  if constexpr (!std::is_class_v<E>) result = x;
#else
  narrow(x, &result);
#endif
  return result;
}

}  // namespace sparsekern
