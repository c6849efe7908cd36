// The house sentence for native code: SPARSEKERN_CHECK(ok, "Expected ... Got ", value, ".").
// Python checks arguments first (ops/*/: _check); what fails here was called around them.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <stdexcept>
#include <string>

#define SPARSEKERN_CHECK(condition, ...)                                                        \
  if (!(condition)) {                                                                           \
    throw std::runtime_error(torch::headeronly::detail::stdTorchCheckMsgImpl("", __VA_ARGS__)); \
  }

namespace sparsekern {

inline void check_int32(const torch::stable::Tensor& t, const char* name, int64_t numel) {
  SPARSEKERN_CHECK(t.scalar_type() == torch::headeronly::ScalarType::Int, "Expected ", name,
                   " to have dtype torch.int32. Got another dtype.");
  SPARSEKERN_CHECK(t.is_contiguous(), "Expected ", name,
                   " to be contiguous. Got a tensor with gaps.");
  SPARSEKERN_CHECK(t.numel() == numel, "Expected ", name, " to have ", numel, " elements. Got ",
                   t.numel(), ".");
}

// Every later index computation relies on this.
inline void check_row_bounds(const int32_t* crow, int64_t rows, int64_t nnz,
                             const char* name = "crow") {
  SPARSEKERN_CHECK(crow[0] == 0 && crow[rows] == nnz, "Expected ", name, " to run from 0 to ", nnz,
                   ", the number of non-zeros. Got ", crow[0], " to ", crow[rows], ".");
  for (int64_t row = 0; row < rows; ++row)
    SPARSEKERN_CHECK(crow[row] <= crow[row + 1], "Expected ", name, " not to decrease. Got ",
                     crow[row], " before ", crow[row + 1], " at row ", row, ".");
}

// SAFETY: every index that kernels walk is built by csr_transpose and csr_panel_starts; one that could
// lead them outside of their arrays is refused there: row bounds by check_row_bounds, columns here.
inline bool columns_rise(const int32_t* col, int32_t begin, int32_t end, int64_t cols) {
  int64_t last = -1;
  bool ok = true;
  for (int32_t j = begin; j < end; ++j) {
    ok &= col[j] > last;
    last = col[j];
  }
  return ok && last < cols;
}

}  // namespace sparsekern
