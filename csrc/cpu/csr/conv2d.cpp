// Formula    y[n, o, i, j] = activation(bias[o]
//                + sum W[o, c, ky, kx] x[n, c, i s - p + ky d, j s - p + kx d]),
//            W in compressed rows [O, C / groups * kh * kw].
// Mapping    a task is a tile: a patch of at most 128 output pixels, packed once and multiplied with
//            all rows by one thread in its own cache. NCHW stays as it is.
// Tile       128 pixels by a block of rows: sums wait in scratch from panel to panel of channels, the
//            last panel writes the output where the tile's lanes are neighbours in it. channels_last
//            is turned into planes band by band on the way in, tile by tile on the way out (images.h).
// Arithmetic accumulated in the dtype of `values`, in the order of the columns.
// Contract   sparsekern/ops/csr/conv2d.py; patches.h, walk.h; bodies: ../isa/.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "convolve.h"
#include "index.h"

namespace sparsekern {
namespace {

template <typename T>
Tensor forward(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
               const Tensor& crow, const Tensor& col, const ConvShape& shape,
               Activation activation) {
  check_values<T>(values, "values", col.numel());
  check_int32(crow, "crow", shape.out_channels + 1);
  check_int32(col, "col", col.numel());
  if (bias) check_values<T>(*bias, "bias", shape.out_channels);
  const auto* crow_data = static_cast<const int32_t*>(crow.data_ptr());
  check_row_bounds(crow_data, shape.out_channels, col.numel());
  if (is_debugging()) IndexRows(crow, col, shape.group_in() * shape.taps()).check();

  const Images<T> in(x);
  const ImageOutput<T> y({shape.batch, shape.out_channels, shape.out_height, shape.out_width}, x);
  if (y.numel() > 0) {
    const SparseKernel<T> kernel{crow_data,
                                 static_cast<const int32_t*>(col.data_ptr()),
                                 nullptr,
                                 static_cast<const T*>(values.data_ptr()),
                                 shape.out_channels,
                                 col.numel(),
                                 shape.out_channels,
                                 shape.groups,
                                 shape.group_in(),
                                 false};
    convolve(shape.forward(), kernel, in, bias ? static_cast<const T*>(bias->data_ptr()) : nullptr,
             activation, y.target());
  }
  return y.finished();
}

Tensor csr_conv2d_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, std::optional<Tensor>,
                      Tensor crow, Tensor col, Tensor, Tensor, Tensor,
                      std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                      std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                      std::string activation, std::string variant) {
  SPARSEKERN_CHECK(variant == "patch" || variant == "auto",
                   "Expected variant to be 'patch' in native CPU code. Got '", variant, "'.");
  dtype_of(x, "x");
  const ConvShape shape(x, crow.numel() - 1, kernel_size, stride, padding, dilation, groups);
  if (values.scalar_type() == ScalarType::Double)
    return forward<double>(x, values, bias, crow, col, shape, activation_of(activation));
  return forward<float>(x, values, bias, crow, col, shape, activation_of(activation));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_conv2d", TORCH_BOX(&csr_conv2d_cpu)); }

}  // namespace sparsekern
