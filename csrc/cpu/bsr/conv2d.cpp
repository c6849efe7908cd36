// Formula    y[n, o, i, j] = bias[o] + sum W[o, c, ky, kx] x[n, c, i s - p + ky d, j s - p + kx d],
//            W in blocks of the matrix [O, kh * kw * C / groups].
// Mapping    images come in waves; they are packed as padded planes, then a task is a run of tiles of
//            one image.
// Tile       64 lanes (output pixels, and a few between rows) by the outputs of a group of rows of
//            blocks; a block multiplies its channels' planes, a fixed step away.
// Arithmetic accumulated in the dtype of `values`, in the order of the columns.
// Contract   sparsekern/ops/bsr/conv2d.py; planes.h; bodies: ../isa/bsr_spmm.inl.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "../output.h"
#include "planes.h"

namespace sparsekern {
namespace {

constexpr int64_t kRun = 8;  // tiles of a task

template <typename T>
class Forward {
 public:
  Forward(const PlaneShape& shape, const ConvBlocks<T>& blocks, const T* x, const T* bias, T* y)
      : shape_(shape),
        blocks_(blocks),
        x_(x),
        bias_(bias),
        y_(y),
        size_(std::max<int64_t>(1, RowGroups<T>::kOutputs / blocks.blocks().height)),
        tiles_(make_tiles(shape.pixels())) {}

  void run() {
    const ConvShape& c = shape_.conv;
    const int64_t bytes = shape_.x_size() * int64_t(sizeof(T));
    const int64_t wave = std::min(c.batch, std::max(thread_count(), kWaveImages / bytes));
    ScratchFrame scratch;
    planes_ = scratch.take<T>(wave * shape_.x_size());
    tile_ = size_ * blocks_.blocks().height * kTileWidth;
    outputs_ = scratch.take<T>(thread_count() * tile_);
    const int64_t runs = ceil_div(int64_t(tiles_.size()), kRun);
    const int64_t work = shape_.pixels() * (blocks_.blocks().nnz() + c.out_channels);
    for (first_ = 0; first_ < c.batch; first_ += wave) {
      const int64_t count = std::min(wave, c.batch - first_);
      parallel_tasks(count * c.channels, count * shape_.x_size(),
                     [&](int64_t task, int64_t) { pack(task / c.channels, task % c.channels); });
      parallel_tasks(count * runs, count * work, [&](int64_t task, int64_t slot) {
        const int64_t begin = task % runs * kRun;
        const int64_t end = std::min(begin + kRun, int64_t(tiles_.size()));
        for (int64_t t = begin; t < end; ++t) multiply(task / runs, tiles_[size_t(t)], slot);
      });
    }
  }

 private:
  void pack(int64_t image, int64_t channel) {
    const ConvShape& c = shape_.conv;
    T* planes = planes_ + image * shape_.x_size();
    pack_x(shape_, x_ + ((first_ + image) * c.channels + channel) * c.height * c.width,
           planes + channel * shape_.x_channel);
    if (channel + 1 == c.channels)
      std::fill(planes + c.channels * shape_.x_channel, planes + shape_.x_size(), T(0));
  }

  void multiply(int64_t image, const Tile& tile, int64_t slot) {
    const ConvShape& c = shape_.conv;
    T* output = outputs_ + slot * tile_;
    const std::vector<Part> parts =
        parts_of(tile.first, tile.batch, shape_.cols, Range(0, c.out_width), c.out_width, 1);
    for (int64_t group = 0; group < c.groups; ++group) {
      const T* panel =
          planes_ + image * shape_.x_size() + group * c.group_in() * shape_.x_channel + tile.first;
      const int64_t end = (group + 1) * blocks_.group_rows();
      for (int64_t row = group * blocks_.group_rows(); row < end; row += size_) {
        const int64_t last = std::min(end, row + size_);
        block_kernels<T>().spmm(blocks_.plain(), row, last, panel, 1, shape_.x_channel, tile.width,
                                output);
        for (int64_t o = row * blocks_.blocks().height; o < last * blocks_.blocks().height; ++o)
          write(parts, image, o, output + (o - row * blocks_.blocks().height) * tile.width);
      }
    }
  }

  void write(const std::vector<Part>& parts, int64_t image, int64_t channel, const T* lanes) {
    const ConvShape& c = shape_.conv;
    const T shift = bias_ != nullptr ? bias_[channel] : T(0);
    T* plane = y_ + ((first_ + image) * c.out_channels + channel) * c.out_height * c.out_width;
    for (const Part& part : parts) {
      T* __restrict target = plane + part.offset;
      const T* __restrict source = lanes + part.lane;
      for (int64_t i = 0; i < part.count; ++i) target[i] = source[i] + shift;
    }
  }

  const PlaneShape& shape_;
  const ConvBlocks<T>& blocks_;
  const T* x_;
  const T* bias_;
  T* y_;
  const int64_t size_;  // rows of blocks of a group
  const std::vector<Tile> tiles_;
  T* planes_ = nullptr;   // [image of the wave][x_size]
  T* outputs_ = nullptr;  // one tile private to each thread
  int64_t tile_ = 0, first_ = 0;
};

template <typename T>
Tensor forward(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
               const Tensor& crow, const Tensor& col, int64_t columns, const ConvShape& conv) {
  const PlaneShape shape(conv);
  const ConvBlocks<T> blocks(values, crow, col, columns, shape);
  if (bias) check_values<T>(*bias, "bias", conv.out_channels);
  const Tensor in = widened(x, scalar_type<T>());
  Tensor y = empty_output({conv.batch, conv.out_channels, conv.out_height, conv.out_width},
                          scalar_type<T>());
  if (y.numel() > 0)
    Forward<T>(shape, blocks, static_cast<const T*>(in.data_ptr()),
               bias ? static_cast<const T*>(bias->data_ptr()) : nullptr,
               static_cast<T*>(y.mutable_data_ptr()))
        .run();
  return x.scalar_type() == scalar_type<T>() ? y : torch::stable::to(y, x.scalar_type());
}

Tensor bsr_conv2d_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, std::optional<Tensor>,
                      Tensor crow, Tensor col, Tensor crow_t, Tensor, Tensor,
                      std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                      std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                      std::string variant) {
  SPARSEKERN_CHECK(variant == "plane" || variant == "auto",
                   "Expected variant to be 'plane' in native CPU code. Got '", variant, "'.");
  SPARSEKERN_CHECK(values.dim() == 3, "Expected values to be [blocks, height, width]. Got ",
                   values.dim(), " dimensions.");
  dtype_of(x, "x");
  const int64_t rows = (crow.numel() - 1) * values.size(1), columns = crow_t.numel() - 1;
  const ConvShape shape(x, rows, kernel_size, stride, padding, dilation, groups);
  if (values.scalar_type() == ScalarType::Double)
    return forward<double>(x, values, bias, crow, col, columns, shape);
  return forward<float>(x, values, bias, crow, col, columns, shape);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("bsr_conv2d", TORCH_BOX(&bsr_conv2d_cpu)); }

}  // namespace sparsekern
