// Formula    dx = dy W;  dvalues_j = dy_j^T x_j for the rows and columns of block j;
//            dbias = sum_b dy[b].
// Mapping    the batch comes in waves of tiles. First, a task is a tile: one thread packs x and dy
//            and takes dx from its own cache; then a task is a row of blocks, whose dvalues are
//            summed over all tiles of the wave.
// Tile       as linear.cpp; dx walks the transposed index and reads blocks through `perm`.
// Arithmetic accumulated in the dtype of `values`, four tiles in one running sum: no atomics, the
//            same bits for any number of threads (the size of a wave follows from shapes alone).
// Contract   sparsekern/ops/bsr/linear.py; bodies: ../isa/bsr_spmm.inl, ../isa/bsr_sddmm.inl.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "index.h"

namespace sparsekern {
namespace {

// Scratch for a batch of any size stays bounded.
constexpr int64_t kWaveBytes = int64_t(4) << 20;
constexpr int64_t kTogether = 4;  // tiles of one running sum; longer ones would round too often

struct Wanted {
  bool x, values, bias;
};

template <typename T>
class Backward {
 public:
  Backward(const Tensor& grad, const Tensor& x, const Tensor& values, const Tensor& crow,
           const Tensor& col, const Tensor& crow_t, const Tensor& col_t, const Tensor& perm,
           Wanted wanted)
      : wanted_(wanted),
        threads_(thread_count()),
        grad_rows_(grad, dtype_of(grad, "grad")),
        x_rows_(x, dtype_of(x, "x")),
        blocks_(values, crow, col, crow_t.numel() - 1),
        tiles_(make_tiles(x_rows_.batch)) {
    SPARSEKERN_CHECK(x_rows_.features == blocks_.in_features(), "Expected x to have ",
                     blocks_.in_features(), " features. Got ", x_rows_.features, ".");
    SPARSEKERN_CHECK(
        grad_rows_.features == blocks_.out_features() && grad_rows_.batch == x_rows_.batch,
        "Expected grad to be [", x_rows_.batch, ", ", blocks_.out_features(), "]. Got [",
        grad_rows_.batch, ", ", grad_rows_.features, "].");
    check_both_ways(crow, col, crow_t, col_t, perm);
    blocks_.add_transposed(crow_t, col_t, perm);
    const auto type = scalar_type<T>();
    dx_ = wanted.x ? empty_with_features(x, x_rows_.features)
                   : torch::stable::empty({0}, x.scalar_type());
    dvalues_ = wanted.values
                   ? torch::stable::empty({blocks_.count, blocks_.height, blocks_.width}, type)
                   : torch::stable::empty({0}, type);
    dbias_ = torch::stable::empty({wanted.bias ? blocks_.out_features() : 0}, type);
    by_vectors_ = blocks_.width % block_kernels<T>().lanes == 0;
  }

  std::tuple<Tensor, Tensor, Tensor> run() {
    const int64_t count = int64_t(tiles_.size());
    if (count == 0) {
      std::fill_n(data(dvalues_), dvalues_.numel(), T(0));
      std::fill_n(data(dbias_), dbias_.numel(), T(0));
      return {dx_, dvalues_, dbias_};
    }
    const int64_t features = x_rows_.features + grad_rows_.features;
    const int64_t tile_bytes = std::max<int64_t>(1, features * kTileWidth * int64_t(sizeof(T)));
    const int64_t wave = std::min(count, std::max<int64_t>(4, kWaveBytes / tile_bytes));
    const RowGroups<T> groups(blocks_.transposed);
    output_tile_ = groups.scratch(blocks_.transposed);
    outputs_ = scratch_.take<T>(wanted_.x ? threads_ * output_tile_ : 0);
    grad_panels_.emplace(grad_rows_, wave, kTileWidth, scratch_);
    x_size_ = x_rows_.features * kTileWidth;
    x_panels_ = scratch_.take<T>(wanted_.values ? wave * x_size_ : 0);
    for (first_ = 0; first_ < count; first_ += wave) {
      count_ = std::min(wave, count - first_);
      pack_and_multiply(groups);
      sample();
    }
    return {dx_, dvalues_, dbias_};
  }

 private:
  const Tile& tile(int64_t index) const { return tiles_[size_t(first_ + index)]; }
  static T* data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

  // Packs all tiles of the wave; tiles that no one shares get their dx at once.
  void pack_and_multiply(const RowGroups<T>& groups) {
    const int64_t whole = wanted_.x ? count_ - count_ % threads_ : 0, shared = count_ - whole;
    const int64_t x_strips = wanted_.values ? ceil_div(x_rows_.features, kStrip) : 0;
    const int64_t strips = grad_panels_->strips() + x_strips;
    const int64_t work = kTileWidth * (blocks_.nnz() + x_rows_.features + grad_rows_.features);
    parallel_tasks(whole + shared * strips, count_ * work, [&](int64_t task, int64_t slot) {
      if (task >= whole) {
        const int64_t index = whole + (task - whole) / strips, strip = (task - whole) % strips;
        if (strip < x_strips) return pack_x(index, strip * kStrip, kStrip);
        return grad_panels_->pack_strip(tile(index), index, strip - x_strips);
      }
      if (wanted_.values) pack_x(task, 0, x_rows_.features);
      grad_panels_->pack(tile(task), task);
      for (int64_t group = 0; group < groups.count; ++group) multiply(groups, task, group, slot);
    });
    if (!wanted_.x) return;
    parallel_tasks(shared * groups.count, shared * work, [&](int64_t task, int64_t slot) {
      multiply(groups, whole + task % shared, task / shared, slot);
    });
  }

  // Features [first, first + most) of one tile of x, in the layout that the products want.
  void pack_x(int64_t index, int64_t first, int64_t most) {
    const Tile& t = tile(index);
    const int64_t count = std::min(most, x_rows_.features - first);
    T* panel = x_panels_ + index * x_size_ + first * t.width;
    const void* source = x_rows_.at(t.first, first);
    if (by_vectors_) {
      const auto& table = block_kernels<T>();
      table.pack_vectors(source, x_rows_.dtype, x_rows_.stride, t.batch, count / table.lanes,
                         t.width, panel);
    } else {
      kernels<T>().pack(source, x_rows_.dtype, x_rows_.stride, t.batch, count, t.width, t.width,
                        panel);
    }
  }

  void multiply(const RowGroups<T>& groups, int64_t index, int64_t group, int64_t slot) {
    multiply_blocks(blocks_.transposed, groups, static_cast<const T*>(nullptr), tile(index),
                    grad_panels_->panel(index), group, outputs_ + slot * output_tile_,
                    Output(dx_, x_rows_.dtype, x_rows_.features));
  }

  // dvalues and dbias, row of blocks after row of blocks.
  void sample() {
    if (!wanted_.values && !wanted_.bias) return;
    const int64_t work = count_ * kTileWidth * (blocks_.nnz() + grad_rows_.features);
    parallel_tasks(blocks_.rows, work, [&](int64_t row, int64_t) { sample_row(row); });
  }

  void sample_row(int64_t row) {
    const int64_t height = blocks_.height, output = row * height;
    const bool accumulate = first_ > 0;
    std::vector<BlockTile<T>> tiles;
    for (int64_t index = 0; index < count_; ++index) {
      const Tile& t = tile(index);
      const T* y = grad_panels_->panel(index) + output * t.width;
      tiles.push_back({y, x_panels_ + index * x_size_, t.batch, t.width, t.width, t.width,
                       blocks_.width * t.width});
      if (wanted_.bias)
        kernels<T>().sum_rows(y, height, t.width, accumulate || index > 0, data(dbias_) + output);
    }
    if (!wanted_.values) return;
    const int32_t begin = blocks_.plain.crow[row], end = blocks_.plain.crow[row + 1];
    const auto body = by_vectors_ ? block_kernels<T>().sddmm_vectors : block_kernels<T>().sddmm;
    for (int64_t index = 0; index < count_; index += kTogether)
      body(tiles.data() + index, std::min(kTogether, count_ - index), blocks_.plain.col + begin,
           end - begin, height, blocks_.width, accumulate || index > 0,
           data(dvalues_) + begin * height * blocks_.width);
  }

  static constexpr int64_t kStrip = PackedTiles<T>::kStrip;
  const Wanted wanted_;
  const int64_t threads_;
  const Rows grad_rows_, x_rows_;
  Blocks<T> blocks_;
  const std::vector<Tile> tiles_;
  Tensor dx_, dvalues_, dbias_;
  ScratchFrame scratch_;
  std::optional<PackedTiles<T>> grad_panels_;
  bool by_vectors_ = false;
  T* x_panels_ = nullptr;  // [tile of the wave][x_size_]
  T* outputs_ = nullptr;   // one tile of dx private to each thread
  int64_t x_size_ = 0, output_tile_ = 0;
  int64_t first_ = 0, count_ = 0;  // tiles of the wave
};

std::tuple<Tensor, Tensor, Tensor> bsr_linear_backward_cpu(Tensor grad, Tensor x, Tensor values,
                                                           Tensor crow, Tensor col, Tensor crow_t,
                                                           Tensor col_t, Tensor perm,
                                                           std::vector<bool> output_mask,
                                                           std::string variant) {
  SPARSEKERN_CHECK(variant == "panel" || variant == "auto",
                   "Expected variant to be 'panel' in native CPU code. Got '", variant, "'.");
  SPARSEKERN_CHECK(output_mask.size() == 3, "Expected output_mask to have 3 entries. Got ",
                   output_mask.size(), ".");
  const Wanted wanted{output_mask[0], output_mask[1], output_mask[2]};
  if (values.scalar_type() == ScalarType::Double)
    return Backward<double>(grad, x, values, crow, col, crow_t, col_t, perm, wanted).run();
  return Backward<float>(grad, x, values, crow, col, crow_t, col_t, perm, wanted).run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("bsr_linear_backward", TORCH_BOX(&bsr_linear_backward_cpu));
}

}  // namespace sparsekern
