// dx and dvalues of csr_linear from one walk over the transposed index, for large batches.
//
// A row of the transposed weight is a feature of x: its entries' rows of dy, packed, are added up for
// dx and multiplied with the feature for dvalues. PERF: one load then feeds two multiply-adds where
// loads bind each of two walks; it pays where the batch is large enough for values to be gathered
// and dvalues to be scattered once, and where there are registers for both (AVX-512).
#pragma once
#include <atomic>

#include "batch.h"
#include "index.h"

namespace sparsekern {

template <typename T>
class BothGradients {
 public:
  // `gate`: as PackedTiles. `dbias` may be null.
  BothGradients(const Rows& grad, const Rows* gate, const Rows& x, const Matrix<T>& transposed,
                const Output& dx, T* dvalues, T* dbias)
      : grad_rows_(grad),
        gate_(gate),
        x_rows_(x),
        matrix_(transposed),
        dx_(dx),
        dvalues_(dvalues),
        dbias_(dbias),
        threads_(thread_count()) {}

  static bool pays(const PanelGeometry& g, int64_t batch) {
    return kernels<T>().widest == kWidth && batch >= 2 * kWidth && g.nnz > 0 &&
           4 * g.nnz >= kTileWidth * (g.rows + g.cols) && g.rows < kMostRows;
  }

  void run() {
    gather();
    std::vector<Tile> tiles;
    for (int64_t first = 0; first < grad_rows_.batch; first += kWidth)
      tiles.push_back({first, std::min<int64_t>(kWidth, grad_rows_.batch - first), kWidth});
    const int64_t tile_bytes =
        (grad_rows_.features + x_rows_.features) * kWidth * int64_t(sizeof(T));
    const auto count = int64_t(tiles.size());
    const int64_t wave = std::min(count, std::max<int64_t>(1, kWaveBytes / tile_bytes));
    const PackedTiles<T> grad(grad_rows_, wave, kWidth, scratch_, gate_);
    const PackedTiles<T> x(x_rows_, wave, kWidth, scratch_);
    outputs_ = scratch_.take<T>(threads_ * geometry().row_block * kWidth);
    for (int64_t first = 0; first < count; first += wave) {
      const int64_t last = std::min(count, first + wave);
      pack(tiles, first, last, grad, x);
      multiply(tiles, first, last, grad, x);
    }
    scatter();
  }

 private:
  static constexpr int kWidth = 2 * kTileWidth;
  static constexpr int64_t kMostRows = (int64_t(1) << 31) / kWidth;  // offsets are int32
  static constexpr int64_t kWaveBytes = int64_t(8) << 20;

  const PanelGeometry& geometry() const { return matrix_.starts.geometry; }

  // Values in the order of the walk, and where the rows of dy that they multiply lie in a panel.
  void gather() {
    const int64_t nnz = geometry().nnz;
    T* values = scratch_.take<T>(nnz);
    int32_t* offsets = scratch_.take<int32_t>(nnz);
    // SAFETY: dvalues is written through perm, so it is checked in every build.
    std::atomic<bool> ok{true};
    parallel_range(nnz, [&](int64_t begin, int64_t end) {
      bool inside = true;
      for (int64_t j = begin; j < end; ++j)
        inside &= uint32_t(matrix_.perm[j]) < uint32_t(nnz) &&
                  uint32_t(matrix_.col[j]) < uint32_t(geometry().cols);
      if (!inside) {
        ok = false;
        return;
      }
      for (int64_t j = begin; j < end; ++j) {
        values[j] = matrix_.values[matrix_.perm[j]];
        offsets[j] = matrix_.col[j] * kWidth;
      }
    });
    SPARSEKERN_CHECK(ok,
                     "Expected col_t and perm to lie inside of the weight. Got an index outside.");
    values_ = values;
    offsets_ = offsets;
    sums_ = scratch_.take<T>(nnz);
  }

  void scatter() const {
    parallel_range(geometry().nnz, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) dvalues_[matrix_.perm[j]] = sums_[j];
    });
  }

  void pack(const std::vector<Tile>& tiles, int64_t first, int64_t last, const PackedTiles<T>& grad,
            const PackedTiles<T>& x) const {
    const int64_t strips = grad.strips() + x.strips();
    const int64_t work = (last - first) * kWidth * (grad_rows_.features + x_rows_.features);
    parallel_tasks((last - first) * strips, work, [&](int64_t task, int64_t) {
      const int64_t index = task / strips, strip = task % strips;
      const Tile& tile = tiles[size_t(first + index)];
      if (strip < grad.strips()) {
        grad.pack_strip(tile, index, strip);
      } else {
        x.pack_strip(tile, index, strip - grad.strips());
      }
    });
  }

  // A task takes rows of dx and dvalues, or of dbias, through all tiles of the wave.
  void multiply(const std::vector<Tile>& tiles, int64_t first, int64_t last,
                const PackedTiles<T>& grad, const PackedTiles<T>& x) const {
    const PanelGeometry& g = geometry();
    int64_t piece = g.row_block;  // rows of a task: part of a block where threads are many
    while (piece > 64 && ceil_div(g.rows, piece) < 2 * threads_) piece /= 2;
    const int64_t pieces = ceil_div(g.row_block, piece);  // of one block
    const int64_t tasks = g.blocks * pieces;
    const int64_t bias_tasks = dbias_ != nullptr ? grad.strips() : 0;
    parallel_tasks(
        tasks + bias_tasks, (last - first) * kWidth * 2 * g.nnz, [&](int64_t task, int64_t slot) {
          for (int64_t index = 0; index < last - first; ++index) {
            const bool accumulate = first + index > 0;
            if (task < tasks) {
              rows_of_tile(tiles[size_t(first + index)], task / pieces, task % pieces * piece,
                           piece, grad.panel(index), x.panel(index), accumulate, slot);
            } else {
              bias_of_tile(grad, index, task - tasks, accumulate);
            }
          }
        });
  }

  void rows_of_tile(const Tile& tile, int64_t block, int64_t skipped, int64_t count, const T* grad,
                    const T* x, bool accumulate, int64_t slot) const {
    const PanelGeometry& g = geometry();
    const int64_t row = block * g.row_block + skipped;
    const int64_t rows = std::min(std::min(count, g.row_block - skipped), g.rows - row);
    if (rows <= 0) return;
    const int width = tile.batch > 64 ? 128 : tile.batch > 32 ? 64 : tile.batch > 16 ? 32 : 16;
    T* output = outputs_ + slot * g.row_block * kWidth;
    const TileRows<const T> features{x + row * kWidth, kWidth, kPackedLanes, nullptr};
    const TileRows<T> to{output, kWidth, kPackedLanes, nullptr};
    for (int64_t p = 0; p < g.panels; ++p) {
      CellRows cell = matrix_.starts.cell(block, p);
      cell.starts += skipped;
      cell.ends += skipped;
      cell.rows = rows;
      const TileRows<const T> from{p > 0 ? output : nullptr, kWidth, kPackedLanes, nullptr};
      kernels<T>().convolve_both(cell, values_, offsets_, grad, width, features, accumulate, sums_,
                                 from, to);
    }
    kernels<T>().unpack(output, nullptr, rows, tile.batch, kWidth, Activation::kNone,
                        dx_.at(tile.first, row), dx_.dtype, dx_.stride);
  }

  void bias_of_tile(const PackedTiles<T>& grad, int64_t index, int64_t strip,
                    bool accumulate) const {
    const int64_t first = strip * PackedTiles<T>::kStrip;
    const int64_t count = std::min(PackedTiles<T>::kStrip, grad_rows_.features - first);
    kernels<T>().sum_rows(grad.panel(index) + first * kWidth, count, kWidth, accumulate,
                          dbias_ + first);
  }

  const Rows& grad_rows_;
  const Rows* gate_;
  const Rows& x_rows_;
  const Matrix<T>& matrix_;
  const Output dx_;
  T* dvalues_;
  T* dbias_;
  const int64_t threads_;
  ScratchFrame scratch_;
  const T* values_ = nullptr;
  const int32_t* offsets_ = nullptr;
  T* sums_ = nullptr;
  T* outputs_ = nullptr;  // one tile of dx private to each thread
};

}  // namespace sparsekern
