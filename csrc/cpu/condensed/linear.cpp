// Formula    y = x W^T + bias, W with as many entries in every row; made for a batch of at most 16.
// Mapping    a task is a group of rows.
// Tile       1 (gathered from x where it lies), 4, 8 or 16 elements of the batch, as few as hold it;
//            a larger batch goes 16 by 16.
// Arithmetic accumulated in the dtype of `values` (float, double), in the order of the columns.
// Contract   sparsekern/ops/condensed/linear.py; bodies: ../isa/condensed.inl.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "../csr/index.h"
#include "../isa/condensed_kernels.h"

namespace sparsekern {
namespace {

constexpr int64_t kMostBatch = 16;  // of a tile
constexpr int64_t kGroup = 64;      // rows of a task

template <typename T>
const CondensedKernels<T>& bodies();
template <>
const CondensedKernels<float>& bodies<float>() {
  return float_condensed_kernels();
}
template <>
const CondensedKernels<double>& bodies<double>() {
  return double_condensed_kernels();
}

// PERF: a panel as narrow as the batch is a half or a quarter as large: a batch of 4 takes 0.35 ns an
// entry in 4 lanes and 0.43 in 16, one of 8 takes 0.39 in 8 lanes and 0.44 in 16 (1024 x 1024 at
// density 0.1, Zen 5, one thread).
int width_of(int64_t batch) { return batch <= 4 ? 4 : batch <= 8 ? 8 : 16; }

// Narrow tiles; 16 lanes are transposed in registers (PanelKernels).
template <int kWidth, typename T, typename E>
void pack_narrow(const Rows& rows, T* panel) {
  const E* source[kWidth];
  for (int64_t b = 0; b < kWidth; ++b)
    source[b] = static_cast<const E*>(rows.at(b < rows.batch ? b : 0, 0));
  for (int64_t c = 0; c < rows.features; ++c)
    for (int64_t b = 0; b < kWidth; ++b) panel[c * kWidth + b] = T(widen(source[b][c]));
}

template <typename T, typename E>
void unpack_narrow(const T* tile, const T* bias, int64_t count, int64_t batch, int width, E* y,
                   int64_t stride) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < count; ++r)
      narrow(tile[r * width + b] + (bias != nullptr ? bias[r] : T(0)), y + b * stride + r);
}

// Calls `body` with a null pointer of the element type of the activations.
template <typename T, typename Body>
void with_element(Dtype dtype, const Body& body) {
  if (sizeof(T) == sizeof(double)) return body(static_cast<const double*>(nullptr));
  if (dtype == Dtype::kBFloat16) return body(static_cast<const BFloat16*>(nullptr));
  if (dtype == Dtype::kHalf) return body(static_cast<const Half*>(nullptr));
  body(static_cast<const float*>(nullptr));
}

template <typename T>
void multiply(const Rows& rows, const CondensedRows<T>& matrix, const T* bias, const Output& y) {
  const bool gathers = rows.batch == 1 && rows.are<T>();
  const int width = width_of(rows.batch);
  ScratchFrame scratch;
  T* panel = scratch.take<T>(gathers ? 0 : rows.features * width);
  T* tiles = scratch.take<T>(gathers ? 0 : thread_count() * kGroup * width);
  if (!gathers && width == 16) {
    kernels<T>().pack(rows.at(0, 0), rows.dtype, rows.stride, rows.batch, rows.features, width,
                      width, panel);
  } else if (!gathers) {
    with_element<T>(rows.dtype, [&](auto* element) {
      using E = std::decay_t<decltype(*element)>;
      (width == 4 ? pack_narrow<4, T, E> : pack_narrow<8, T, E>)(rows, panel);
    });
  }
  const int64_t nnz = matrix.rows * matrix.fan_in;
  parallel_tasks(
      ceil_div(matrix.rows, kGroup), (gathers ? 4 : width) * nnz, [&](int64_t task, int64_t slot) {
        const int64_t first = task * kGroup;
        const int64_t count = std::min(kGroup, matrix.rows - first);
        const CondensedRows<T> own = matrix.from(first, count);
        const T* shift = bias != nullptr ? bias + first : nullptr;
        if (gathers)
          return bodies<T>().dot(own, static_cast<const T*>(rows.at(0, 0)), shift,
                                 static_cast<T*>(y.at(0, first)));
        T* tile = tiles + slot * kGroup * width;
        bodies<T>().spmm(own, panel, width, tile);
        if (width == 16)
          return kernels<T>().unpack(tile, shift, count, rows.batch, width, Activation::kNone,
                                     y.at(0, first), y.dtype, y.stride);
        with_element<T>(y.dtype, [&](auto* element) {
          using E = std::decay_t<decltype(*element)>;
          unpack_narrow(tile, shift, count, rows.batch, width, static_cast<E*>(y.at(0, first)),
                        y.stride);
        });
      });
}

template <typename T>
Tensor forward(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
               const Tensor& col, int64_t in_features) {
  const Rows rows(x, dtype_of(x, "x"));
  SPARSEKERN_CHECK(rows.features == in_features, "Expected x to have ", in_features,
                   " features. Got ", rows.features, ".");
  SPARSEKERN_CHECK((rows.dtype == Dtype::kDouble) == (sizeof(T) == sizeof(double)),
                   "Expected x and values to be float64 together or not at all. Got one that is.");
  SPARSEKERN_CHECK(col.dim() == 2, "Expected col to have 2 dimensions. Got ", col.dim(), ".");
  const int64_t out = col.size(0), fan_in = col.size(1);
  check_values<T>(values, "values", out * fan_in);
  check_int32(col, "col", out * fan_in);
  if (bias) check_values<T>(*bias, "bias", out);
  const auto* columns = static_cast<const int32_t*>(col.data_ptr());
  for (int64_t r = 0; is_debugging() && r < out; ++r)
    SPARSEKERN_CHECK(
        columns_rise(columns, int32_t(r * fan_in), int32_t((r + 1) * fan_in), in_features),
        "Expected col to rise within each row, from 0 to below ", in_features,
        ". Got columns of row ", r, " that do not.");
  Tensor y = empty_with_features(x, out);
  const CondensedRows<T> matrix{columns, static_cast<const T*>(values.data_ptr()), out, fan_in};
  const T* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
  const Output output(y, rows.dtype, out);
  for (int64_t first = 0; first < rows.batch; first += kMostBatch) {
    Rows part = rows;
    part.data = static_cast<const char*>(rows.at(first, 0));
    part.batch = std::min(kMostBatch, rows.batch - first);
    Output target = output;
    target.data = static_cast<char*>(output.at(first, 0));
    multiply(part, matrix, b, target);
  }
  return y;
}

Tensor condensed_linear_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, Tensor col,
                            int64_t in_features, std::string variant) {
  SPARSEKERN_CHECK(variant == "rows" || variant == "auto",
                   "Expected variant to be 'rows' in native CPU code. Got '", variant, "'.");
  if (values.scalar_type() == ScalarType::Double)
    return forward<double>(x, values, bias, col, in_features);
  return forward<float>(x, values, bias, col, in_features);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("condensed_linear", TORCH_BOX(&condensed_linear_cpu));
}

}  // namespace sparsekern
