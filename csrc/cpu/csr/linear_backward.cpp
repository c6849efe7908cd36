// Formula    dx = dy W;  dvalues[j] = sum_b dy[b, row j] x[b, col j];  dbias = sum_b dy[b];
//            with `y`, the output of a ReLU, dy is zero where !(y > 0), NaN excepted.
// Mapping    first, a task is a tile: one thread packs x and dy and takes dx from its own cache. For
//            few non-zeros it also takes the tile's share of dvalues, which is added up afterwards;
//            for many, a second round of tasks takes blocks of rows through all tiles. Large batches
//            take dx and dvalues in one walk (both_gradients.h).
// Tile       as linear.cpp; dx walks the transposed index and reads values through `perm`.
// Arithmetic accumulated in the dtype of `values`, tile after tile in either order of work: no
//            atomics, the same bits for any number of threads.
// Contract   sparsekern/ops/csr/linear.py; bodies: ../isa/.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "batch.h"
#include "both_gradients.h"
#include "index.h"

namespace sparsekern {
namespace {

// Scratch for a batch of any size stays bounded: its tiles come in waves.
constexpr int64_t kWaveBytes = int64_t(4) << 20;

struct Wanted {
  bool x, values, bias;
};

template <typename T>
class Backward {
 public:
  Backward(const Tensor& grad, const Tensor& x, const Tensor& values,
           const std::optional<Tensor>& y, const Tensor& crow, const Tensor& col,
           const Tensor& starts, const Tensor& crow_t, const Tensor& col_t, const Tensor& perm,
           const Tensor& starts_t, Wanted wanted)
      : wanted_(wanted),
        threads_(thread_count()),
        grad_rows_(grad, dtype_of(grad, "grad")),
        x_rows_(x, dtype_of(x, "x")),
        starts_(checked_starts(starts, crow, col, x_rows_.features)),
        crow_(static_cast<const int32_t*>(crow.data_ptr())),
        col_(static_cast<const int32_t*>(col.data_ptr())),
        widest_(widest_tile<T>(geometry())),
        tiles_(make_tiles(x_rows_.batch, widest_)),
        dx_(wanted.x ? empty_with_features(x, x_rows_.features)
                     : torch::stable::empty({0}, x.scalar_type())),
        dvalues_(empty(wanted.values ? geometry().nnz : 0)),
        dbias_(empty(wanted.bias ? geometry().rows : 0)) {
    check_int32(crow, "crow", geometry().rows + 1);
    check_values<T>(values, "values", geometry().nnz);
    SPARSEKERN_CHECK(grad_rows_.features == geometry().rows && grad_rows_.batch == x_rows_.batch,
                     "Expected grad to be [", x_rows_.batch, ", ", geometry().rows, "]. Got [",
                     grad_rows_.batch, ", ", grad_rows_.features, "].");
    if (y) {
      gate_.emplace(*y, dtype_of(*y, "y"));
      SPARSEKERN_CHECK(gate_->features == geometry().rows && gate_->batch == x_rows_.batch &&
                           gate_->dtype == grad_rows_.dtype,
                       "Expected y to be like grad, [", x_rows_.batch, ", ", geometry().rows,
                       "]. Got [", gate_->batch, ", ", gate_->features, "] or another dtype.");
    }
    if (wanted.x) prepare_transposed(values, crow, col, crow_t, col_t, perm, starts_t);
  }

  std::tuple<Tensor, Tensor, Tensor> run() {
    const int64_t count = int64_t(tiles_.size());
    if (count == 0) {
      std::fill_n(data(dvalues_), dvalues_.numel(), T(0));
      std::fill_n(data(dbias_), dbias_.numel(), T(0));
    }
    if (wanted_.x && wanted_.values && BothGradients<T>::pays(geometry(), x_rows_.batch)) {
      BothGradients<T>(grad_rows_, gate_ ? &*gate_ : nullptr, x_rows_, *transposed_,
                       Output(dx_, x_rows_.dtype, x_rows_.features), data(dvalues_),
                       wanted_.bias ? data(dbias_) : nullptr)
          .run();
      return {dx_, dvalues_, dbias_};
    }
    if (wanted_.x && count > 2 * threads_) gather_values();
    // PERF: by tile, each tile's share of dvalues crosses from core to core; by rows, the packed
    // tiles do. Measured: by tile wins up to nnz = 32 (I + O) with tiles of 64, 1.2 to 3 times at
    // density 0.01, and up to twice that with tiles of 128, 1.1 times at 0.1 (192, 1024 to 1024).
    const int64_t features = x_rows_.features + grad_rows_.features;
    by_tile_ = 2 * geometry().nnz < widest_ * features && count >= threads_;
    const int64_t tile_bytes = by_tile_ ? (geometry().nnz + geometry().rows) * int64_t(sizeof(T))
                                        : features * widest_ * int64_t(sizeof(T));
    const int64_t fitting = kWaveBytes / std::max<int64_t>(1, tile_bytes);
    const int64_t wave = std::min(count, round_up(std::max<int64_t>(1, fitting), threads_));
    prepare_scratch(wave);
    for (first_ = 0; first_ < count; first_ += wave) {
      count_ = std::min(wave, count - first_);
      whole_ = wanted_.x || by_tile_ ? count_ - count_ % threads_ : 0;
      first_round();
      second_round();
    }
    return {dx_, dvalues_, dbias_};
  }

 private:
  const PanelGeometry& geometry() const { return starts_.geometry; }
  int64_t blocks_t() const { return wanted_.x ? transposed_->starts.geometry.blocks : 0; }
  int64_t shared() const { return count_ - whole_; }
  const Tile& tile(int64_t index) const { return tiles_[size_t(first_ + index)]; }

  static Tensor empty(int64_t numel) { return torch::stable::empty({numel}, scalar_type<T>()); }
  static T* data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

  void prepare_transposed(const Tensor& values, const Tensor& crow, const Tensor& col,
                          const Tensor& crow_t, const Tensor& col_t, const Tensor& perm,
                          const Tensor& starts_t) {
    const PanelStarts transposed = checked_starts(starts_t, crow_t, col_t, geometry().rows, true);
    SPARSEKERN_CHECK(transposed.geometry.rows == geometry().cols, "Expected crow_t to have ",
                     geometry().cols + 1, " elements. Got ", crow_t.numel(), ".");
    check_int32(perm, "perm", geometry().nnz);
    if (is_debugging())
      check_transposed(IndexRows(crow, col, geometry().cols),
                       IndexRows(crow_t, col_t, geometry().rows, "crow_t", "col_t"), perm, 1);
    transposed_.emplace(Matrix<T>{transposed, static_cast<const T*>(values.data_ptr()),
                                  static_cast<const int32_t*>(col_t.data_ptr()),
                                  static_cast<const int32_t*>(perm.data_ptr())});
    output_tile_ = transposed.geometry.row_block * widest_;
    outputs_ = scratch_.take<T>(threads_ * output_tile_);
  }

  void prepare_scratch(int64_t wave) {
    const int64_t places = by_tile_ ? 2 * threads_ : wave;
    x_.emplace(x_rows_, wanted_.values ? places : 0, widest_, scratch_);
    grad_.emplace(grad_rows_, places, widest_, scratch_, gate_ ? &*gate_ : nullptr);
    if (by_tile_) {
      partial_values_ = scratch_.take<T>(wanted_.values ? wave * geometry().nnz : 0);
      partial_bias_ = scratch_.take<T>(wanted_.bias ? wave * geometry().rows : 0);
    }
  }

  // Values in transposed order, for batches of many tiles. PERF: the gather costs 1 to 2 ns an
  // entry once, reading values through `perm` about 0.3 ns an entry and tile.
  void gather_values() {
    T* gathered = scratch_.take<T>(geometry().nnz);
    parallel_range(geometry().nnz, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) gathered[j] = transposed_->values[transposed_->perm[j]];
    });
    transposed_->values = gathered;
    transposed_->perm = nullptr;
  }

  // Where the packed tile `index` of the wave lies: a thread reuses one place for all of its own.
  int64_t place(int64_t index, int64_t slot) const {
    if (!by_tile_) return index;
    return index < whole_ ? slot : threads_ + index - whole_;
  }

  // Whole tiles, and the packing of those that the threads share.
  void first_round() {
    const int64_t x_strips = wanted_.values ? x_->strips() : 0;
    const int64_t strips = grad_->strips() + x_strips;
    const int64_t work =
        count_ * widest_ * (geometry().nnz + x_rows_.features + grad_rows_.features);
    parallel_tasks(whole_ + shared() * strips, work, [&](int64_t task, int64_t slot) {
      if (task < whole_) {
        whole_tile(task, slot);
      } else {
        pack_strip(whole_ + (task - whole_) / strips, (task - whole_) % strips);
      }
    });
  }

  void whole_tile(int64_t index, int64_t slot) {
    const int64_t at = place(index, slot);
    if (wanted_.values) x_->pack(tile(index), at);
    grad_->pack(tile(index), at);
    for (int64_t block = 0; block < blocks_t(); ++block) multiply(index, at, block, slot);
    if (!by_tile_) return;
    const PanelGeometry& g = geometry();
    if (wanted_.values) {
      for (int64_t block = 0; block < g.blocks; ++block)
        sample(index, at, block, false, partial_values_ + index * g.nnz);
    }
    if (wanted_.bias)
      kernels<T>().sum_rows(grad_->panel(at), g.rows, tile(index).width, false,
                            partial_bias_ + index * g.rows);
  }

  void pack_strip(int64_t index, int64_t strip) {
    const int64_t at = place(index, 0);
    if (strip < grad_->strips()) {
      grad_->pack_strip(tile(index), at, strip);
    } else {
      x_->pack_strip(tile(index), at, strip - grad_->strips());
    }
  }

  // dx of shared tiles, and groups of rows of dvalues and dbias through what is left of the wave.
  void second_round() {
    const PanelGeometry& g = geometry();
    const int64_t x_tasks = shared() * blocks_t();
    const int64_t group = std::max<int64_t>(1, ceil_div(g.blocks, 2 * threads_));
    const int64_t groups = wanted_.values || wanted_.bias ? ceil_div(g.blocks, group) : 0;
    const int64_t work = by_tile_ ? whole_ * g.nnz + shared() * widest_ * (g.nnz + g.rows)
                                  : count_ * widest_ * (g.nnz + g.rows);
    parallel_tasks(x_tasks + groups, work, [&](int64_t task, int64_t slot) {
      if (task < x_tasks) {
        const int64_t index = whole_ + task % shared();
        multiply(index, place(index, 0), task / shared(), slot);
      } else {
        const int64_t first = (task - x_tasks) * group;
        row_group(first, std::min(first + group, g.blocks));
      }
    });
  }

  void row_group(int64_t first_block, int64_t last_block) {
    const PanelGeometry& g = geometry();
    const int64_t begin = first_block * g.row_block;
    const int64_t end = std::min(last_block * g.row_block, g.rows);
    int64_t done = 0;  // tiles of this wave that the sums hold already
    if (by_tile_) {
      done = whole_;
      if (wanted_.values)
        add_partials(partial_values_, g.nnz, crow_[begin], crow_[end], data(dvalues_));
      if (wanted_.bias) add_partials(partial_bias_, g.rows, begin, end, data(dbias_));
    }
    for (int64_t index = done; index < count_; ++index) {
      const bool accumulate = first_ > 0 || index > 0;
      const int64_t at = place(index, 0);
      if (wanted_.values) {
        for (int64_t block = first_block; block < last_block; ++block)
          sample(index, at, block, accumulate, data(dvalues_));
      }
      if (wanted_.bias) {
        const int width = tile(index).width;
        kernels<T>().sum_rows(grad_->panel(at) + begin * width, end - begin, width, accumulate,
                              data(dbias_) + begin);
      }
    }
  }

  // total[begin, end) (+)= the whole tiles' shares, in the order of the tiles.
  void add_partials(const T* partials, int64_t size, int64_t begin, int64_t end, T* total) const {
    for (int64_t index = 0; index < whole_; ++index) {
      const T* share = partials + index * size;
      if (first_ == 0 && index == 0) {
        std::copy(share + begin, share + end, total + begin);
      } else {
        for (int64_t i = begin; i < end; ++i) total[i] += share[i];
      }
    }
  }

  void multiply(int64_t index, int64_t at, int64_t block, int64_t slot) {
    multiply_tile(*transposed_, static_cast<const T*>(nullptr), Activation::kNone, tile(index),
                  grad_->panel(at), block, outputs_ + slot * output_tile_,
                  Output(dx_, x_rows_.dtype, x_rows_.features));
  }

  void sample(int64_t index, int64_t at, int64_t block, bool accumulate, T* gradient) {
    const int width = tile(index).width;
    const T* rows = grad_->panel(at) + block * geometry().row_block * width;
    for (int64_t p = 0; p < geometry().panels; ++p)
      kernels<T>().sddmm(starts_.cell(block, p), col_, x_->panel(at), rows, width, accumulate,
                         gradient);
  }

  const Wanted wanted_;
  const int64_t threads_;
  const Rows grad_rows_, x_rows_;
  std::optional<Rows> gate_;  // y
  const PanelStarts starts_;
  const int32_t* crow_;
  const int32_t* col_;
  const int widest_;
  const std::vector<Tile> tiles_;
  Tensor dx_, dvalues_, dbias_;
  std::optional<Matrix<T>> transposed_;
  ScratchFrame scratch_;
  std::optional<PackedTiles<T>> x_, grad_;
  bool by_tile_ = false;         // whole tiles take their share of dvalues themselves
  T* outputs_ = nullptr;         // one tile of dx private to each thread
  T* partial_values_ = nullptr;  // [tile of the wave][nnz]
  T* partial_bias_ = nullptr;    // [tile of the wave][rows]
  int64_t output_tile_ = 0;
  int64_t first_ = 0, count_ = 0, whole_ = 0;  // tiles of the wave, and how many no one shares
};

std::tuple<Tensor, Tensor, Tensor> csr_linear_backward_cpu(
    Tensor grad, Tensor x, Tensor values, std::optional<Tensor> y, Tensor crow, Tensor col,
    Tensor starts, Tensor crow_t, Tensor col_t, Tensor perm, Tensor starts_t,
    std::vector<bool> output_mask, std::string variant) {
  SPARSEKERN_CHECK(variant == "panel" || variant == "auto",
                   "Expected variant to be 'panel' in native CPU code. Got '", variant, "'.");
  SPARSEKERN_CHECK(output_mask.size() == 3, "Expected output_mask to have 3 entries. Got ",
                   output_mask.size(), ".");
  const Wanted wanted{output_mask[0], output_mask[1], output_mask[2]};
  if (values.scalar_type() == ScalarType::Double)
    return Backward<double>(grad, x, values, y, crow, col, starts, crow_t, col_t, perm, starts_t,
                            wanted)
        .run();
  return Backward<float>(grad, x, values, y, crow, col, starts, crow_t, col_t, perm, starts_t,
                         wanted)
      .run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_linear_backward", TORCH_BOX(&csr_linear_backward_cpu));
}

}  // namespace sparsekern
