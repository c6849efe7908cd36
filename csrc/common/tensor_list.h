// Lists of floating-point tensors, as the update ops take them, on any device.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "dtype.h"

namespace sparsekern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

inline Dtype float_dtype(const Tensor& t, const char* name) {
  const ScalarType type = t.scalar_type();
  SPARSEKERN_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                       type == ScalarType::BFloat16 || type == ScalarType::Half,
                   "Expected ", name,
                   " to be float32, float64, bfloat16 or float16. Got another dtype.");
  return type == ScalarType::Double     ? Dtype::kDouble
         : type == ScalarType::BFloat16 ? Dtype::kBFloat16
         : type == ScalarType::Half     ? Dtype::kHalf
                                        : Dtype::kFloat;
}

inline void check_length(const TensorList& list, const char* name, size_t length) {
  SPARSEKERN_CHECK(list.size() == length, "Expected ", name, " to have ", int64_t(length),
                   " tensors. Got ", int64_t(list.size()), ".");
}

inline void check_copies(const TensorList& copies, size_t length) {
  if (!copies.empty()) check_length(copies, "copies", length);
}

}  // namespace sparsekern
