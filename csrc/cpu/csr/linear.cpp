// Formula    y = activation(x W^T + bias), W in compressed rows.
// Mapping    a task is a tile of the batch, packed and multiplied by one thread in its own cache;
//            the tiles that do not come out even are shared: (tile, block of rows). A batch of at
//            most 16 is cut by rows alone.
// Tile       up to 64 batch elements, or 128 (index.h); a block's outputs stay in a scratch tile until all panels of
//            columns have been added, then are transposed out together with bias and activation.
// Arithmetic accumulated in the dtype of `values` (float, double), in the order of the columns.
// Contract   sparsekern/ops/csr/linear.py; what is walked: panel_starts.h; bodies: ../isa/.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "batch.h"
#include "index.h"

namespace sparsekern {

template <typename T>
void multiply_tile(const Matrix<T>& matrix, const T* bias, Activation activation, const Tile& tile,
                   const T* panel, int64_t block, T* scratch, const Output& y) {
  const PanelGeometry& g = matrix.starts.geometry;
  const int64_t first = block * g.row_block;
  const int64_t rows = std::min(g.row_block, g.rows - first);
  if (g.panels == 0) std::fill(scratch, scratch + rows * tile.width, T(0));
  for (int64_t p = 0; p < g.panels; ++p)
    kernels<T>().spmm(matrix.starts.cell(block, p), matrix.values, matrix.col, matrix.perm, panel,
                      tile.width, p == 0, scratch);
  kernels<T>().unpack(scratch, bias != nullptr ? bias + first : nullptr, rows, tile.batch,
                      tile.width, activation, y.at(tile.first, first), y.dtype, y.stride);
}
template void multiply_tile(const Matrix<float>&, const float*, Activation, const Tile&,
                            const float*, int64_t, float*, const Output&);
template void multiply_tile(const Matrix<double>&, const double*, Activation, const Tile&,
                            const double*, int64_t, double*, const Output&);

namespace {

constexpr int64_t kSmallBatch = 16;

const int32_t* checked_rows(const Tensor& crow, const PanelGeometry& g) {
  check_int32(crow, "crow", g.rows + 1);
  const auto* data = static_cast<const int32_t*>(crow.data_ptr());
  check_row_bounds(data, g.rows, g.nnz);
  return data;
}

// At most one vector of the batch. PERF: with so little work an entry, entries must stream from
// memory, so rows are walked whole and not panel by panel: a batch of 16 takes 0.48 ns an entry in
// place of 0.73, a batch of one 0.41 in place of 0.62 (1024 x 1024 at density 0.25, Zen 5, one thread).
template <typename T>
void small_batch(const Rows& rows, const Matrix<T>& matrix, const int32_t* crow, const T* bias,
                 Activation activation, const Output& y) {
  if (rows.batch == 0) return;
  const PanelGeometry& g = matrix.starts.geometry;
  ScratchFrame scratch;
  const bool gathers = rows.batch == 1 && rows.are<T>();
  const Tile tile{0, rows.batch, int(kSmallBatch)};
  const PackedTiles<T> packed(rows, gathers ? 0 : 1, kTileWidth, scratch);
  if (!gathers) packed.pack(tile, 0);
  constexpr int64_t kGroup = 64;  // rows of a task
  T* outputs = scratch.take<T>(thread_count() * kGroup * kSmallBatch);
  parallel_tasks(ceil_div(g.rows, kGroup), (gathers ? 4 : 16) * g.nnz,
                 [&](int64_t task, int64_t slot) {
                   const int64_t first = task * kGroup, count = std::min(kGroup, g.rows - first);
                   const T* shift = bias != nullptr ? bias + first : nullptr;
                   if (gathers) {
                     kernels<T>().dot(crow + first, matrix.col, matrix.values,
                                      static_cast<const T*>(rows.at(0, 0)), shift, count,
                                      activation, static_cast<T*>(y.at(0, first)));
                     return;
                   }
                   T* output = outputs + slot * kGroup * kSmallBatch;
                   const CellRows cell{crow + first, crow + first + 1, count, g.nnz, 0};
                   kernels<T>().spmm(cell, matrix.values, matrix.col, nullptr, packed.panel(0),
                                     tile.width, true, output);
                   kernels<T>().unpack(output, shift, count, tile.batch, tile.width, activation,
                                       y.at(0, first), y.dtype, y.stride);
                 });
}

template <typename T>
Tensor forward(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
               const Tensor& crow, const Tensor& col, const Tensor& starts, Activation activation) {
  const Rows rows(x, dtype_of(x, "x"));
  const PanelStarts panel_starts = checked_starts(starts, crow, col, rows.features);
  const PanelGeometry& g = panel_starts.geometry;
  check_values<T>(values, "values", g.nnz);
  if (bias) check_values<T>(*bias, "bias", g.rows);

  Tensor y = empty_with_features(x, g.rows);
  const Output output(y, rows.dtype, g.rows);
  const Matrix<T> matrix{panel_starts, static_cast<const T*>(values.data_ptr()),
                         static_cast<const int32_t*>(col.data_ptr()), nullptr};
  const T* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
  if (rows.batch <= kSmallBatch) {
    small_batch(rows, matrix, checked_rows(crow, g), b, activation, output);
    return y;
  }

  const int widest = widest_tile<T>(g);
  const std::vector<Tile> tiles = make_tiles(rows.batch, widest);
  const int64_t count = int64_t(tiles.size());
  const int64_t threads = thread_count();
  const int64_t whole = count - count % threads;
  const int64_t shared = count - whole;
  const int64_t work = widest * (g.nnz + rows.features);
  ScratchFrame scratch;
  const PackedTiles<T> packed(rows, threads + shared, widest, scratch);
  const int64_t output_tile = g.row_block * widest;  // one private to each thread
  T* outputs = scratch.take<T>(threads * output_tile);

  const int64_t strips = packed.strips();
  parallel_tasks(whole + shared * strips, count * work, [&](int64_t task, int64_t slot) {
    if (task >= whole) {
      const int64_t index = (task - whole) / strips;
      return packed.pack_strip(tiles[whole + index], threads + index, (task - whole) % strips);
    }
    packed.pack(tiles[task], slot);
    for (int64_t block = 0; block < g.blocks; ++block)
      multiply_tile(matrix, b, activation, tiles[task], packed.panel(slot), block,
                    outputs + slot * output_tile, output);
  });
  parallel_tasks(shared * g.blocks, shared * work, [&](int64_t task, int64_t slot) {
    const int64_t index = task % shared;
    multiply_tile(matrix, b, activation, tiles[whole + index], packed.panel(threads + index),
                  task / shared, outputs + slot * output_tile, output);
  });
  return y;
}

Tensor csr_linear_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, std::optional<Tensor>,
                      Tensor crow, Tensor col, Tensor starts, Tensor, Tensor, Tensor, Tensor,
                      std::string activation, std::string variant) {
  SPARSEKERN_CHECK(variant == "panel" || variant == "auto",
                   "Expected variant to be 'panel' in native CPU code. Got '", variant, "'.");
  if (values.scalar_type() == ScalarType::Double)
    return forward<double>(x, values, bias, crow, col, starts, activation_of(activation));
  return forward<float>(x, values, bias, crow, col, starts, activation_of(activation));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_linear", TORCH_BOX(&csr_linear_cpu)); }

}  // namespace sparsekern
