// Formula    dx = the transpose of conv2d.cpp's map, applied to dy;
//            dvalues_j[r][c] = sum over images and pixels of dy[o] x[c, a step away]; dbias = sum dy.
// Mapping    images come in waves; x and dy are packed as padded planes, then a task is a run of tiles
//            of one phase of one image's dx, then a task is a row of blocks of dvalues.
// Tile       as conv2d.cpp; of dvalues 4 x 4 sums over all lanes of an image, or of some small ones.
// Arithmetic accumulated in the dtype of `values`, image after image: no atomics, the same bits for
//            any number of threads.
// Contract   sparsekern/ops/bsr/conv2d.py; planes.h; bodies: ../isa/bsr_spmm.inl, bsr_sddmm.inl.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../output.h"
#include "planes.h"

namespace sparsekern {
namespace {

constexpr int64_t kRun = 8;  // tiles of a task
// Lanes of small images that are summed before the sums are folded.
constexpr int64_t kLanesTogether = 1024;

struct Wanted {
  bool x, values, bias;
};

template <typename T>
struct Tensors {
  const T* grad;
  const T* x;
  T* dx;
  T* dvalues;
  T* dbias;
};

// Tiles of one phase of dx, over the rows that lie inside of x.
struct PhaseTiles {
  int64_t phase, first_lane;
  std::vector<Tile> tiles;
};

template <typename T>
class Backward {
 public:
  Backward(const PlaneShape& shape, ConvBlocks<T>& blocks, const Tensors<T>& tensors, Wanted wanted)
      : shape_(shape),
        blocks_(blocks),
        tensors_(tensors),
        wanted_(wanted),
        size_(std::max<int64_t>(1, RowGroups<T>::kOutputs / blocks.blocks().width)) {
    if (!wanted.x) return;
    blocks.make_transposed();
    const ConvShape& c = shape.conv;
    for (int64_t phase = 0; phase < shape.phases(); ++phase) {
      const Range rows(phase / c.stride.w - c.padding.h, c.stride.h, c.height, shape.rows);
      const int64_t lanes = (rows.end - rows.begin) * shape.cols;
      phases_.push_back({phase, rows.begin * shape.cols, make_tiles(lanes)});
    }
  }

  void run() {
    const ConvShape& c = shape_.conv;
    const int64_t x_size = wanted_.values ? shape_.x_size() : 0;
    const int64_t bytes = (x_size + shape_.y_size()) * int64_t(sizeof(T));
    const int64_t wave = std::min(c.batch, std::max(thread_count(), kWaveImages / bytes));
    ScratchFrame scratch;
    x_planes_ = scratch.take<T>(wave * x_size);
    y_planes_ = scratch.take<T>(wave * shape_.y_size());
    tile_ = size_ * blocks_.blocks().width * kTileWidth;
    outputs_ = scratch.take<T>(wanted_.x ? thread_count() * tile_ : 0);
    for (first_ = 0; first_ < c.batch; first_ += wave) {
      count_ = std::min(wave, c.batch - first_);
      pack();
      if (wanted_.x) multiply_all();
      sample_all();
    }
  }

 private:
  void pack() {
    const ConvShape& c = shape_.conv;
    const int64_t channels = c.out_channels + (wanted_.values ? c.channels : 0);
    const int64_t work = count_ * (shape_.x_size() + shape_.y_size());
    parallel_tasks(count_ * channels, work, [&](int64_t task, int64_t) {
      const int64_t image = task / channels, channel = task % channels;
      if (channel < c.out_channels) {
        T* planes = y_planes_ + image * shape_.y_size();
        const int64_t plane = (first_ + image) * c.out_channels + channel;
        pack_y(shape_, tensors_.grad + plane * c.out_height * c.out_width,
               planes + channel * shape_.y_channel);
        if (channel + 1 == c.out_channels)
          std::fill(planes + c.out_channels * shape_.y_channel, planes + shape_.y_size(), T(0));
        return;
      }
      const int64_t x_channel = channel - c.out_channels;
      T* planes = x_planes_ + image * shape_.x_size();
      const int64_t plane = (first_ + image) * c.channels + x_channel;
      pack_x(shape_, tensors_.x + plane * c.height * c.width,
             planes + x_channel * shape_.x_channel);
      if (x_channel + 1 == c.channels)
        std::fill(planes + c.channels * shape_.x_channel, planes + shape_.x_size(), T(0));
    });
  }

  void multiply_all() {
    const ConvShape& c = shape_.conv;
    const int64_t work = shape_.pixels() * (blocks_.blocks().nnz() + c.channels);
    for (const PhaseTiles& phase : phases_) {
      const int64_t tiles = int64_t(phase.tiles.size()), runs = ceil_div(tiles, kRun);
      parallel_tasks(count_ * runs, count_ * work, [&](int64_t task, int64_t slot) {
        const int64_t begin = task % runs * kRun, end = std::min(begin + kRun, tiles);
        for (int64_t t = begin; t < end; ++t)
          for (int64_t group = 0; group < c.groups; ++group)
            multiply(phase, task / runs, group, phase.tiles[size_t(t)], slot);
      });
    }
  }

  void multiply(const PhaseTiles& phase, int64_t image, int64_t group, const Tile& tile,
                int64_t slot) {
    const BlockMatrix<T> matrix = blocks_.transposed(phase.phase, group);
    const int64_t first_lane = phase.first_lane + tile.first;
    const T* panel = y_planes_ + image * shape_.y_size() + first_lane;
    T* output = outputs_ + slot * tile_;
    const ConvShape& c = shape_.conv;
    const int64_t left = phase.phase % c.stride.w - c.padding.w;
    const std::vector<Part> parts =
        parts_of(first_lane, tile.batch, shape_.cols, Range(left, c.stride.w, c.width, shape_.cols),
                 c.stride.h * c.width, c.stride.w);
    for (int64_t row = 0; row < matrix.rows; row += size_) {
      const int64_t last = std::min(matrix.rows, row + size_);
      block_kernels<T>().spmm(matrix, row, last, panel, 1, shape_.y_channel, tile.width, output);
      const int64_t channel = group * c.group_in() + row * matrix.out;
      for (int64_t i = 0; i < (last - row) * matrix.out; ++i)
        write(parts, phase.phase, image, channel + i, output + i * tile.width);
    }
  }

  void write(const std::vector<Part>& parts, int64_t phase, int64_t image, int64_t channel,
             const T* lanes) {
    const ConvShape& c = shape_.conv;
    const int64_t top = phase / c.stride.w - c.padding.h, left = phase % c.stride.w - c.padding.w;
    T* plane = tensors_.dx + ((first_ + image) * c.channels + channel) * c.height * c.width +
               top * c.width + left;
    for (const Part& part : parts) {
      T* target = plane + part.offset;
      const T* source = lanes + part.lane;
      if (c.stride.w == 1) {
        std::copy_n(source, part.count, target);
      } else {
        for (int64_t i = 0; i < part.count; ++i) target[i * c.stride.w] = source[i];
      }
    }
  }

  void sample_all() {
    if (!wanted_.values && !wanted_.bias) return;
    const int64_t work = count_ * shape_.pixels() * (blocks_.blocks().nnz() + 1);
    parallel_tasks(blocks_.blocks().rows, work, [&](int64_t row, int64_t) { sample(row); });
  }

  // dvalues and dbias of one row of blocks.
  void sample(int64_t row) {
    const Blocks<T>& b = blocks_.blocks();
    const int64_t output = row * b.height, group = row / blocks_.group_rows();
    const int64_t begin = b.plain.crow[row], count = b.plain.crow[row + 1] - begin;
    const int64_t lanes = round_up(shape_.pixels(), 16);
    std::vector<BlockTile<T>> tiles;
    for (int64_t image = 0; image < count_; ++image) {
      const T* y = y_planes_ + image * shape_.y_size() + output * shape_.y_channel;
      const T* x = x_planes_ + image * (wanted_.values ? shape_.x_size() : 0) +
                   group * shape_.conv.group_in() * shape_.x_channel;
      tiles.push_back({y + shape_.y_lead, x, lanes, lanes, shape_.y_channel, shape_.x_channel, 1});
      if (wanted_.bias)
        kernels<T>().sum_rows(y, b.height, int(shape_.y_channel), first_ + image > 0,
                              tensors_.dbias + output);
    }
    if (!wanted_.values) return;
    const int64_t together = std::max<int64_t>(1, kLanesTogether / lanes);
    for (int64_t image = 0; image < count_; image += together)
      block_kernels<T>().sddmm(tiles.data() + image, std::min(together, count_ - image),
                               blocks_.plain().col + begin, count, b.height, b.width,
                               first_ + image > 0, tensors_.dvalues + begin * b.height * b.width);
  }

  const PlaneShape& shape_;
  const ConvBlocks<T>& blocks_;
  const Tensors<T> tensors_;
  const Wanted wanted_;
  const int64_t size_;  // rows of blocks of a group, of dx
  std::vector<PhaseTiles> phases_;
  T* x_planes_ = nullptr;  // [image of the wave][x_size]
  T* y_planes_ = nullptr;
  T* outputs_ = nullptr;  // one tile of dx private to each thread
  int64_t tile_ = 0, first_ = 0, count_ = 0;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x,
                                            const Tensor& values, const Tensor& crow,
                                            const Tensor& col, int64_t columns,
                                            const ConvShape& conv, Wanted wanted) {
  const PlaneShape shape(conv);
  ConvBlocks<T> blocks(values, crow, col, columns, shape);
  SPARSEKERN_CHECK(grad.dim() == 4 && grad.size(0) == conv.batch &&
                       grad.size(1) == conv.out_channels && grad.size(2) == conv.out_height &&
                       grad.size(3) == conv.out_width,
                   "Expected grad to have the shape of the output. Got another one.");
  const auto type = scalar_type<T>();
  const Tensor in = widened(x, type), dy = widened(grad, type);
  Tensor dx = wanted.x ? empty_output({conv.batch, conv.channels, conv.height, conv.width}, type)
                       : torch::stable::empty({0}, type);
  const Blocks<T>& b = blocks.blocks();
  Tensor dvalues = wanted.values ? torch::stable::empty({b.count, b.height, b.width}, type)
                                 : torch::stable::empty({0}, type);
  Tensor dbias = torch::stable::empty({wanted.bias ? conv.out_channels : 0}, type);
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  // Pixels that no output reaches, and everything if there are no images.
  std::fill_n(data(dx), dx.numel(), T(0));
  std::fill_n(data(dvalues), dvalues.numel(), T(0));
  std::fill_n(data(dbias), dbias.numel(), T(0));
  if (conv.batch > 0 && conv.out_channels > 0)
    Backward<T>(shape, blocks,
                {static_cast<const T*>(dy.data_ptr()), static_cast<const T*>(in.data_ptr()),
                 data(dx), data(dvalues), data(dbias)},
                wanted)
        .run();
  if (x.scalar_type() != type) dx = torch::stable::to(dx, x.scalar_type());
  return {dx, dvalues, dbias};
}

std::tuple<Tensor, Tensor, Tensor> bsr_conv2d_backward_cpu(
    Tensor grad, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor col_t,
    Tensor perm, std::vector<bool> output_mask, std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    int64_t groups, std::string variant) {
  SPARSEKERN_CHECK(variant == "plane" || variant == "auto",
                   "Expected variant to be 'plane' in native CPU code. Got '", variant, "'.");
  SPARSEKERN_CHECK(output_mask.size() == 3, "Expected output_mask to have 3 entries. Got ",
                   output_mask.size(), ".");
  SPARSEKERN_CHECK(values.dim() == 3, "Expected values to be [blocks, height, width]. Got ",
                   values.dim(), " dimensions.");
  dtype_of(x, "x");
  check_both_ways(crow, col, crow_t, col_t, perm);
  const Wanted wanted{output_mask[0], output_mask[1], output_mask[2]};
  const int64_t rows = (crow.numel() - 1) * values.size(1), columns = crow_t.numel() - 1;
  const ConvShape shape(x, rows, kernel_size, stride, padding, dilation, groups);
  if (values.scalar_type() == ScalarType::Double)
    return backward<double>(grad, x, values, crow, col, columns, shape, wanted);
  return backward<float>(grad, x, values, crow, col, columns, shape, wanted);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("bsr_conv2d_backward", TORCH_BOX(&bsr_conv2d_backward_cpu));
}

}  // namespace sparsekern
