// The table of vector bodies for matrices of constant fan-in. Torch-free. Panels and tiles as in
// kernels.h.
#pragma once
#include <cstdint>

namespace sparsekern {

// Entry j of row r is at r * fan_in + j.
template <typename T>
struct CondensedRows {
  const int32_t* col;
  const T* values;
  int64_t rows, fan_in;

  CondensedRows from(int64_t row, int64_t count) const {
    return {col + row * fan_in, values + row * fan_in, count, fan_in};
  }
};

template <typename T>
struct CondensedKernels {
  // y[r] = bias[r] + sum over row r's entries of value * x[col] (bias may be null).
  void (*dot)(const CondensedRows<T>& matrix, const T* x, const T* bias, T* y);
  // tile[r][:] = sum over row r's entries of value * panel[col][:], `width` 4, 8 or 16.
  void (*spmm)(const CondensedRows<T>& matrix, const T* panel, int width, T* tile);
};

// The bodies in use (select.cpp).
const CondensedKernels<float>& float_condensed_kernels();
const CondensedKernels<double>& double_condensed_kernels();

namespace scalar {
extern const CondensedKernels<float> kFloatCondensedKernels;
extern const CondensedKernels<double> kDoubleCondensedKernels;
}  // namespace scalar
namespace avx2 {
extern const CondensedKernels<float> kFloatCondensedKernels;
}  // namespace avx2
namespace avx512 {
extern const CondensedKernels<float> kFloatCondensedKernels;
}  // namespace avx512

}  // namespace sparsekern
