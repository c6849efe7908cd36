// The table of vector bodies: what every instruction set must provide. Torch-free.
//
// A *tile* is `width` batch elements. Activations are packed feature-major, panel[feature][width],
// so that one non-zero of a row is one broadcast times contiguous vectors. A *cell* is a block of
// rows by a panel of columns; its entries of one row are contiguous in `values` and `col`.
#pragma once
#include <cstdint>

#include "../../common/dtype.h"

namespace sparsekern {

constexpr int kTileWidth = 64;    // widest tile; tails of a batch use 32 or 16
constexpr int kPrefetchRows = 4;  // how many rows ahead entries are requested

struct CellRows {
  const int32_t* starts;  // first entry of each row in the panel, kPrefetchRows more than rows
  const int32_t* ends;    // one past the last
  int64_t rows;
  int64_t nnz;  // of the whole matrix
  int lines;    // cache lines to prefetch per row
};

template <typename T>
struct PanelKernels {
  // panel[c * width + b] = x[b * stride + c] for b < batch, zero for batch <= b < width.
  void (*pack)(const void* x, Dtype dtype, int64_t stride, int64_t batch, int64_t columns,
               int width, T* panel);
  // y[b * stride + r] = tile[r * width + b] + bias[r] (bias may be null), b < batch, r < rows.
  void (*unpack)(const T* tile, const T* bias, int64_t rows, int64_t batch, int width, void* y,
                 Dtype dtype, int64_t stride);
  // tile[r][:] (+)= w_j * panel[col[j]][:] for every entry j of every row; `first` starts from zero.
  // w_j is values[j], or values[perm[j]] where perm is not null.
  void (*spmm)(const CellRows& cell, const T* values, const int32_t* col, const int32_t* perm,
               const T* panel, int width, bool first, T* tile);
  // gradient[j] (+)= sum_b x_panel[col[j]][b] * y_panel[r][b] for every entry j of every row.
  void (*sddmm)(const CellRows& cell, const int32_t* col, const T* x_panel, const T* y_panel,
                int width, bool accumulate, T* gradient);
  // sums[r] (+)= sum over the tile of panel[r][:], r < rows.
  void (*sum_rows)(const T* panel, int64_t rows, int width, bool accumulate, T* sums);
};

// Ceilings of the machine, for benchmarks: multiply-adds per call, from registers and from L1.
struct PeakKernels {
  int64_t (*registers)(int64_t rounds, float* result);
  int64_t (*memory)(int64_t rounds, float* result);
};

// The bodies in use, chosen once when the library is loaded (SPARSEKERN_ISA overrides; select.cpp).
const PanelKernels<float>& float_kernels();
const PanelKernels<double>& double_kernels();
const char* active_isa();

namespace scalar {
extern const PeakKernels kPeakKernels;
extern const PanelKernels<float> kFloatKernels;
extern const PanelKernels<double> kDoubleKernels;
}  // namespace scalar
namespace avx2 {
extern const PeakKernels kPeakKernels;
extern const PanelKernels<float> kFloatKernels;
}  // namespace avx2
namespace avx512 {
extern const PeakKernels kPeakKernels;
extern const PanelKernels<float> kFloatKernels;
}  // namespace avx512

}  // namespace sparsekern
