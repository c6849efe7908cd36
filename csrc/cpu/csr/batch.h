// A batch of activations as packed tiles: what forward and backward of csr_linear share.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "../../common/ceil_div.h"
#include "../../common/check.h"
#include "../../common/dtype.h"
#include "../isa/kernels.h"
#include "../parallel.h"
#include "../scratch.h"

namespace sparsekern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Tile {
  int64_t first;  // first batch element
  int64_t batch;  // batch elements, at most `width`
  int width;      // 128 or 64, and 32 or 16 for what is left at the end
};

inline std::vector<Tile> make_tiles(int64_t batch, int widest = kTileWidth) {
  std::vector<Tile> tiles;
  for (int64_t first = 0; first < batch;) {
    const int64_t left = batch - first;
    const int width = left >= widest ? widest : left > 32 ? kTileWidth : left > 16 ? 32 : 16;
    tiles.push_back({first, std::min<int64_t>(left, width), width});
    first += width;
  }
  return tiles;
}

// A [.., features] tensor read as [batch, features] with any row stride.
struct Rows {
  Tensor tensor;  // keeps a contiguous copy alive where one was needed
  const char* data;
  Dtype dtype;
  int64_t batch, features, stride, element_size;

  Rows(const Tensor& t, Dtype dtype) : tensor(t), dtype(dtype) {
    const int64_t dim = t.dim();
    const bool strided_rows = dim == 2 && t.stride(1) == 1 && t.stride(0) >= t.size(1);
    if (!strided_rows && !t.is_contiguous()) tensor = torch::stable::contiguous(t);
    features = t.size(dim - 1);
    batch = features > 0 ? t.numel() / features : leading_size(t);
    stride = strided_rows ? t.stride(0) : features;
    element_size = int64_t(t.element_size());
    data = static_cast<const char*>(tensor.data_ptr());
  }

  const void* at(int64_t row, int64_t feature) const {
    return data + (row * stride + feature) * element_size;
  }

  // Whether kernels of T can read them where they are: no 16-bit type has the size of one.
  template <typename T>
  bool are() const {
    return element_size == int64_t(sizeof(T));
  }

 private:
  static int64_t leading_size(const Tensor& t) {
    int64_t size = 1;
    for (int64_t d = 0; d + 1 < t.dim(); ++d) size *= t.size(d);
    return size;
  }
};

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kHalf;
    default:
      SPARSEKERN_CHECK(false, "Expected ", name,
                       " to be float32, float64, bfloat16 or float16. Got another dtype.");
  }
  return Dtype::kFloat;
}

inline Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  SPARSEKERN_CHECK(name == "none", "Expected activation to be none, relu, gelu or gelu_tanh. Got '",
                   name, "'.");
  return Activation::kNone;
}

template <typename T>
const PanelKernels<T>& kernels();
template <>
inline const PanelKernels<float>& kernels<float>() {
  return float_kernels();
}
template <>
inline const PanelKernels<double>& kernels<double>() {
  return double_kernels();
}

template <typename T>
constexpr ScalarType scalar_type() {
  return sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
}

// Tiles packed feature-major: panel(i)[feature][width].
template <typename T>
class PackedTiles {
 public:
  static constexpr int64_t kStrip = 256;  // features packed by one task

  // With `gate`, the output of a ReLU, rows are zero where that is not above zero or NaN.
  PackedTiles(const Rows& rows, int64_t max_tiles, int widest, ScratchFrame& scratch,
              const Rows* gate = nullptr)
      : rows_(rows),
        gate_(gate),
        widest_(widest),
        data_(scratch.take<T>(max_tiles * panel_size())) {}

  int64_t panel_size() const { return rows_.features * widest_; }
  int64_t strips() const { return ceil_div(rows_.features, kStrip); }
  T* panel(int64_t index) const { return data_ + index * panel_size(); }

  void pack(const Tile& tile, int64_t index) const { pack(tile, index, 0, rows_.features); }
  void pack_strip(const Tile& tile, int64_t index, int64_t strip) const {
    const int64_t first = strip * kStrip;
    pack(tile, index, first, std::min(kStrip, rows_.features - first));
  }

 private:
  void pack(const Tile& tile, int64_t index, int64_t first, int64_t count) const {
    const void* source = rows_.at(tile.first, first);
    T* target = panel(index) + first * tile.width;
    if (gate_ == nullptr) {
      kernels<T>().pack(source, rows_.dtype, rows_.stride, tile.batch, count, tile.width,
                        tile.width, target);
    } else {
      kernels<T>().pack_gated(source, rows_.dtype, rows_.stride, gate_->at(tile.first, first),
                              gate_->stride, tile.batch, count, tile.width, target);
    }
  }

  const Rows& rows_;
  const Rows* gate_;
  const int widest_;  // tile
  T* data_;
};

}  // namespace sparsekern
