// The table of vector bodies: what every instruction set must provide. Torch-free.
//
// A *tile* is `width` batch elements. Activations are packed feature-major, panel[feature][width],
// so that one non-zero of a row is one broadcast times contiguous vectors. A *cell* is a block of
// rows by a panel of columns; its entries of one row are contiguous in `values` and `col`.
#pragma once
#include <cstdint>

#include "../../common/dtype.h"

namespace sparsekern {

constexpr int kTileWidth = 64;    // tile of a batch; its tail uses 32 or 16
constexpr int kPatchWidth = 128;  // widest tile of pixels
constexpr int kPrefetchRows = 4;  // how many rows ahead entries are requested

// What a layer applies to its outputs: max(x, 0); x P(N <= x) of a standard normal N, and the
// approximation of that by tanh.
enum class Activation { kNone, kRelu, kGelu, kGeluTanh };

struct CellRows {
  const int32_t* starts;  // first entry of each row, and kPrefetchRows more where lines > 0
  const int32_t* ends;    // one past the last
  int64_t rows;
  int64_t nnz;  // of the whole matrix
  int lines;    // cache lines to prefetch per row
};

// Rows of a tile as they lie in memory: lanes [16 k, 16 k + 16) of row r begin at
// data + r * stride + lanes[k], and only the first counts[k] of them are there (all, where counts is
// null); the others read as zero and are not written.
template <typename T>
struct TileRows {
  T* data;
  int64_t stride;
  const int64_t* lanes;
  const int32_t* counts;
};

// `lanes` of rows that are packed: one whole tile after the other.
constexpr int64_t kPackedLanes[kPatchWidth / 16] = {0, 16, 32, 48, 64, 80, 96, 112};

// One packed row of a patch of pixels.
struct PackRow {
  int64_t target;  // where it begins within a copy
  int64_t source;  // where its row begins in the plane, -1 outside of it
};

// A patch of planes [channel][row][column], `plane_stride` apart, as it is packed: for every channel `copies` copies,
// each shifted along the width by one column of the kernel, so that what a non-zero multiplies is
// contiguous:  panel[c * channel_size + k * copy_size + rows[r].target + l]
//                  = plane[c][row + rows[r].row][col + shifts[k] + l * col_step],  l < pixels,
// zero outside of the plane.
struct PatchSource {
  int64_t plane_stride, width;
  int64_t col;  // of the plane, may be negative
  int64_t col_step;
  const PackRow* rows;
  int64_t row_count;
  const int64_t* shifts;
  int64_t copies;
  int64_t pixels;  // of one row
  int64_t copy_size, channel_size;
};

// Where a tile [channel][width] of pixels goes: pixel (i, j) of the patch, at lane i * pixels + j, to
// plane[channel][i * row_stride + j * col_step].
struct PatchTarget {
  int64_t rows, cols;  // of the patch, inside of the plane
  int64_t pixels;      // lanes of one row
  int64_t row_stride, col_step, channel_stride;
};

template <typename T>
struct PanelKernels {
  int widest;  // tile of a batch that spmm and sddmm take: kTileWidth, or twice that
  // panel[c * width + b] = x[b * stride + c] for b < batch, zero for batch <= b < lanes (a multiple
  // of 16).
  void (*pack)(const void* x, Dtype dtype, int64_t stride, int64_t batch, int64_t columns,
               int64_t lanes, int64_t width, T* panel);
  // The same of the gradient of a ReLU's input: x where y[b * y_stride + c] is above zero or NaN.
  void (*pack_gated)(const void* x, Dtype dtype, int64_t stride, const void* y, int64_t y_stride,
                     int64_t batch, int64_t columns, int width, T* panel);
  // y[b * stride + r] = activation(tile[r * width + b] + bias[r]) (bias may be null), b < batch,
  // r < rows.
  void (*unpack)(const T* tile, const T* bias, int64_t rows, int64_t batch, int width,
                 Activation activation, void* y, Dtype dtype, int64_t stride);
  // tile[r][:] (+)= w_j * panel[col[j]][:] for every entry j of every row; `first` starts from zero.
  // w_j is values[j], or values[perm[j]] where perm is not null.
  void (*spmm)(const CellRows& cell, const T* values, const int32_t* col, const int32_t* perm,
               const T* panel, int width, bool first, T* tile);
  // y[r] = activation(bias[r] + sum_j values[j] * x[col[j]]) for a batch of one (bias may be null).
  void (*dot)(const int32_t* crow, const int32_t* col, const T* values, const T* x, const T* bias,
              int64_t rows, Activation activation, T* y);
  // gradient[j] (+)= sum_b x_panel[col[j]][b] * y_panel[r][b] for every entry j of every row.
  void (*sddmm)(const CellRows& cell, const int32_t* col, const T* x_panel, const T* y_panel,
                int width, bool accumulate, T* gradient);
  // On packed patches, where entry j's pixels are the `width` elements from panel + offsets[j] on:
  // to[r][:] = activation(from[r][:] + sum_j values[j] * pixels_j[:]); without `from`, from bias[r] or
  // zero on.
  void (*convolve)(const CellRows& cell, const T* values, const int32_t* offsets, const T* panel,
                   int width, const TileRows<const T>& from, const T* bias, Activation activation,
                   const TileRows<T>& to);
  // gradient[j] (+)= sum over lanes of rows[r][:] * pixels_j[:].
  void (*convolve_dvalues)(const CellRows& cell, const int32_t* offsets, const T* panel, int width,
                           const TileRows<const T>& rows, bool accumulate, T* gradient);
  // convolve (without bias and activation) and convolve_dvalues.
  void (*convolve_both)(const CellRows& cell, const T* values, const int32_t* offsets,
                        const T* panel, int width, const TileRows<const T>& rows, bool accumulate,
                        T* gradient, const TileRows<const T>& from, const TileRows<T>& to);
  void (*pack_patch)(const T* planes, const PatchSource& source, int64_t channels, T* panel);
  // y[c][pixel] = tile[c * width + lane].
  void (*unpack_patch)(const T* tile, int64_t channels, int width, const PatchTarget& target, T* y);
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
