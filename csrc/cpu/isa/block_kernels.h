// The table of vector bodies for block sparse matrices. Torch-free. Tiles and panels as in kernels.h.
#pragma once
#include <cstdint>

#include "../../common/dtype.h"

namespace sparsekern {

// Rows of blocks as they are walked; the transposed matrix differs in index and strides alone.
template <typename T>
struct BlockMatrix {
  const int32_t* crow;
  const int32_t* col;
  const int32_t* perm;  // block j of the index is block perm[j] of the values, or j if null
  const T* values;
  int64_t rows;                   // of blocks
  int64_t out, in;                // of one block
  int64_t out_stride, in_stride;  // of one block's values
};

// One tile of the batch, packed for products of two activations.
template <typename T>
struct BlockTile {
  const T* y;  // [out][y_pitch], zero behind the batch
  const T* x;  // [feature][x_pitch], finite behind the batch; or [vector][width][lanes]
  int64_t batch;
  int64_t width;  // of the tile, in whole vectors
  int64_t y_pitch, x_pitch;
  int64_t unit;  // what a column counts, in elements of x
};

template <typename T>
struct BlockKernels {
  int lanes;  // of a vector
  // tile[(R - first) * out + o][:] = sum_j sum_i w_j[o * out_stride + i * in_stride]
  //                                             * panel[col[j] * unit + i * pitch + :]
  // over the blocks j of each row R of blocks, first <= R < last.
  void (*spmm)(const BlockMatrix<T>& matrix, int64_t first, int64_t last, const T* panel,
               int64_t unit, int64_t pitch, int width, T* tile);
  // panel[(v * width + b) * lanes + l] = x[b * stride + v * lanes + l] for b < batch.
  void (*pack_vectors)(const void* x, Dtype dtype, int64_t stride, int64_t batch, int64_t vectors,
                       int width, T* panel);
  // gradient[(j * out + r) * in + c] (+)= sum_b y[r][b] * x[col[j] * unit + c * x_pitch + b] over all tiles, for
  // blocks j < count of one row of blocks, whose first output is y[0]; x by features.
  void (*sddmm)(const BlockTile<T>* tiles, int64_t tile_count, const int32_t* col, int64_t count,
                int64_t out, int64_t in, bool accumulate, T* gradient);
  // The same with x in vectors; `in` is a multiple of `lanes`.
  void (*sddmm_vectors)(const BlockTile<T>* tiles, int64_t tile_count, const int32_t* col,
                        int64_t count, int64_t out, int64_t in, bool accumulate, T* gradient);
};

// The bodies in use (select.cpp).
const BlockKernels<float>& float_block_kernels();
const BlockKernels<double>& double_block_kernels();

namespace scalar {
extern const BlockKernels<float> kFloatBlockKernels;
extern const BlockKernels<double> kDoubleBlockKernels;
}  // namespace scalar
namespace avx2 {
extern const BlockKernels<float> kFloatBlockKernels;
}  // namespace avx2
namespace avx512 {
extern const BlockKernels<float> kFloatBlockKernels;
}  // namespace avx512

}  // namespace sparsekern
