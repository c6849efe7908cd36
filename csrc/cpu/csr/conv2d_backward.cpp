// Formula    dx = the transposed convolution of dy;  dvalues[j] = sum over images and pixels of
//            dy[o] x[c, shifted by (ky, kx)];  dbias[o] = sum of dy[o].
// Mapping    dx: convolve() on the transposed index; of stride s, s x s classes of pixels, each of
//            which sees its own taps. dvalues: threads take chunks of tiles, each chunk with sums of
//            its own that are added in order; few tiles are all packed, and rows are shared out.
// Tile       as conv2d.cpp; dy is packed a second time, without neighbours, for dvalues and dbias.
// Arithmetic accumulated in the dtype of `values`; the chunks follow from the shape alone: no
//            atomics, the same bits for any number of threads.
// Contract   sparsekern/ops/csr/conv2d.py; patches.h, walk.h; bodies: ../isa/.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../output.h"
#include "convolve.h"
#include "index.h"

namespace sparsekern {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Pixels h of dx with (h + padding) % stride == residue, along one dimension.
struct PixelClass {
  int64_t first, count;         // h = first + i * stride
  std::vector<int64_t> shifts;  // of dy, one a kernel row: kAbsent where it has no part

  PixelClass(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
             int64_t residue) {
    const int64_t q = -floor_div(residue - padding, stride);  // least q with q s + r - p >= 0
    first = q * stride + residue - padding;
    count = first < size ? (size - 1 - first) / stride + 1 : 0;
    for (int64_t k = 0; k < kernel; ++k) {
      const bool present = (k * dilation) % stride == residue;
      shifts.push_back(present ? q - (k * dilation - residue) / stride : kAbsent);
    }
  }
};

template <typename T>
void input_gradient(const ConvShape& s, const SparseKernel<T>& kernel, const T* grad, T* dx) {
  for (int64_t rh = 0; rh < s.stride.h; ++rh) {
    const PixelClass h(s.height, s.kernel.h, s.stride.h, s.padding.h, s.dilation.h, rh);
    for (int64_t rw = 0; rw < s.stride.w; ++rw) {
      const PixelClass w(s.width, s.kernel.w, s.stride.w, s.padding.w, s.dilation.w, rw);
      if (h.count == 0 || w.count == 0) continue;
      const ConvView view{s.batch, s.out_channels, s.out_height, s.out_width, s.channels, h.count,
                          w.count, {1, 1},         h.shifts,     w.shifts,    s.groups};
      const PixelTarget<T> target{
          dx + h.first * s.width + w.first, s.height * s.width, {s.stride.h * s.width, s.stride.w}};
      const bool whole = s.stride.h == 1 && s.stride.w == 1;  // all pixels are in one class
      convolve(whole ? view.flattened() : view, kernel, grad, static_cast<const T*>(nullptr),
               target);
    }
  }
}

// dvalues and dbias.
template <typename T>
class WeightGradient {
 public:
  WeightGradient(const ConvShape& shape, const SparseKernel<T>& kernel, const T* x, const T* grad,
                 T* dvalues, T* dbias)
      : view_(shape.forward()),
        x_data_(x),
        grad_data_(grad),
        dvalues_(dvalues),
        dbias_(dbias),
        x_(view_, kernel.nnz),
        grad_(x_.of_outputs()),
        walk_(kernel, x_, view_.taps(), scratch_),
        x_size_(round_up(x_.panel_size(), 16)),
        grad_size_(round_up(grad_.panel_size(), 16)) {}

  void run() {
    const int64_t tiles = x_.tiles();
    work_ = tiles * x_.width() * (walk_.nnz() + view_.channels + walk_.rows());
    // PERF: a chunk's sums cost one pass over nnz; 16 chunks keep that small and threads busy.
    if (tiles >= 4 * kChunks && walk_.nnz() <= kChunkValues) {
      by_chunks(tiles);
    } else {
      by_rows(tiles);
    }
  }

 private:
  static constexpr int64_t kChunks = 16;
  static constexpr int64_t kChunkValues = int64_t(1) << 21;  // 128 MB of sums in all chunks

  void by_chunks(int64_t tiles) {
    const int64_t threads = thread_count();
    T* x_panels = scratch_.take<T>(threads * x_size_);
    T* grad_panels = scratch_.take<T>(threads * grad_size_);
    T* value_sums = scratch_.take<T>(dvalues_ != nullptr ? kChunks * walk_.nnz() : 0);
    T* bias_sums = scratch_.take<T>(kChunks * walk_.rows());
    parallel_tasks(kChunks, work_, [&](int64_t chunk, int64_t slot) {
      const int64_t first = tiles * chunk / kChunks, last = tiles * (chunk + 1) / kChunks;
      T* x = x_panels + slot * x_size_;
      T* grad = grad_panels + slot * grad_size_;
      for (int64_t tile = first; tile < last; ++tile) {
        if (dvalues_ != nullptr) {
          x_.bring_in(x_data_, tile, tile == first);
          x_.pack(kernels<T>(), x_data_, tile, 0, view_.channels, x);
        }
        grad_.bring_in(grad_data_, tile, tile == first);
        grad_.pack(kernels<T>(), grad_data_, tile, 0, view_.out_channels, grad);
        add_tile(x, grad, 0, walk_.blocks(), tile > first, value_sums + chunk * walk_.nnz(),
                 bias_sums + chunk * walk_.rows());
      }
    });
    if (dvalues_ != nullptr) add_chunks(value_sums, walk_.nnz(), dvalues_);
    if (dbias_ != nullptr) add_chunks(bias_sums, walk_.rows(), dbias_);
  }

  static void add_chunks(const T* sums, int64_t size, T* total) {
    parallel_range(size, [&](int64_t begin, int64_t end) {
      std::copy(sums + begin, sums + end, total + begin);
      for (int64_t chunk = 1; chunk < kChunks; ++chunk)
        for (int64_t i = begin; i < end; ++i) total[i] += sums[chunk * size + i];
    });
  }

  // Waves of packed tiles; a task takes a block of rows through the wave.
  void by_rows(int64_t tiles) {
    const int64_t fitting = kWaveBytes / (int64_t(sizeof(T)) * (x_size_ + grad_size_));
    const int64_t wave = std::min(tiles, std::max<int64_t>(4, fitting));
    T* x_panels = scratch_.take<T>(wave * x_size_);
    T* grad_panels = scratch_.take<T>(wave * grad_size_);
    for (int64_t first = 0; first < tiles; first += wave) {
      const int64_t count = std::min(wave, tiles - first);
      parallel_tasks(2 * count, work_, [&](int64_t task, int64_t) {
        const int64_t tile = task / 2;
        if (task % 2 == 0 && dvalues_ != nullptr) {
          x_.pack(kernels<T>(), x_data_, first + tile, 0, view_.channels,
                  x_panels + tile * x_size_);
        } else if (task % 2 == 1) {
          grad_.pack(kernels<T>(), grad_data_, first + tile, 0, view_.out_channels,
                     grad_panels + tile * grad_size_);
        }
      });
      parallel_tasks(walk_.blocks(), work_, [&](int64_t block, int64_t) {
        for (int64_t tile = 0; tile < count; ++tile)
          add_tile(x_panels + tile * x_size_, grad_panels + tile * grad_size_, block, block + 1,
                   first + tile > 0, dvalues_, dbias_);
      });
    }
  }

  void add_tile(const T* x, const T* grad, int64_t first_block, int64_t last_block, bool accumulate,
                T* values, T* biases) const {
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t row = block * walk_.row_block();
      const T* rows = grad + row * grad_.channel_size();
      if (dvalues_ != nullptr)
        for (int64_t p = 0; p < walk_.panels(); ++p)
          kernels<T>().sddmm_offsets(walk_.cell(block, p), walk_.offsets(), x, rows, x_.width(),
                                     accumulate, values);
      if (dbias_ != nullptr)
        kernels<T>().sum_rows(rows, std::min(walk_.row_block(), walk_.rows() - row), x_.width(),
                              accumulate, biases + row);
    }
  }

  static constexpr int64_t kWaveBytes = int64_t(8) << 20;

  ScratchFrame scratch_;
  const ConvView view_;
  const T* x_data_;
  const T* grad_data_;
  T* dvalues_;  // null where it is not wanted
  T* dbias_;
  const Patches x_, grad_;
  const Walk<T> walk_;
  const int64_t x_size_, grad_size_;
  int64_t work_ = 0;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x,
                                            const Tensor& values, const Tensor& crow,
                                            const Tensor& col, const Tensor& crow_t,
                                            const Tensor& col_t, const Tensor& perm,
                                            const ConvShape& shape,
                                            const std::vector<bool>& wanted) {
  const int64_t nnz = col.numel();
  check_values<T>(values, "values", nnz);
  check_int32(crow, "crow", shape.out_channels + 1);
  check_int32(col, "col", nnz);
  const auto* crow_data = static_cast<const int32_t*>(crow.data_ptr());
  check_row_bounds(crow_data, shape.out_channels, nnz);
  const Tensor in = widened(x, scalar_type<T>()), dy = widened(grad, scalar_type<T>());
  const auto make = [](std::vector<int64_t> sizes) {
    return empty_output(sizes, scalar_type<T>());
  };
  Tensor dx =
      wanted[0] ? make({shape.batch, shape.channels, shape.height, shape.width}) : make({0});
  Tensor dvalues = make({wanted[1] ? nnz : 0});
  Tensor dbias = make({wanted[2] ? shape.out_channels : 0});
  const bool empty = dy.numel() == 0;
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  const auto* values_data = static_cast<const T*>(values.data_ptr());
  if (empty) {
    std::fill_n(data(dx), dx.numel(), T(0));
  } else if (wanted[0]) {
    check_int32(crow_t, "crow_t", shape.group_in() + 1);
    check_int32(col_t, "col_t", nnz);
    check_int32(perm, "perm", nnz);
    const auto* crow_t_data = static_cast<const int32_t*>(crow_t.data_ptr());
    check_row_bounds(crow_t_data, shape.group_in(), nnz);
    const SparseKernel<T> kernel{crow_t_data,
                                 static_cast<const int32_t*>(col_t.data_ptr()),
                                 static_cast<const int32_t*>(perm.data_ptr()),
                                 values_data,
                                 shape.group_in(),
                                 nnz,
                                 shape.channels,
                                 shape.groups,
                                 shape.group_out(),
                                 true};
    input_gradient(shape, kernel, static_cast<const T*>(dy.data_ptr()), data(dx));
  }
  if (empty) {
    std::fill_n(data(dvalues), dvalues.numel(), T(0));
    std::fill_n(data(dbias), dbias.numel(), T(0));
  } else if (wanted[1] || wanted[2]) {
    const SparseKernel<T> kernel{crow_data,
                                 static_cast<const int32_t*>(col.data_ptr()),
                                 nullptr,
                                 values_data,
                                 shape.out_channels,
                                 nnz,
                                 shape.out_channels,
                                 shape.groups,
                                 shape.group_in(),
                                 false};
    WeightGradient<T>(shape, kernel, static_cast<const T*>(in.data_ptr()),
                      static_cast<const T*>(dy.data_ptr()), wanted[1] ? data(dvalues) : nullptr,
                      wanted[2] ? data(dbias) : nullptr)
        .run();
  }
  if (x.scalar_type() != scalar_type<T>()) dx = torch::stable::to(dx, x.scalar_type());
  return {dx, dvalues, dbias};
}

std::tuple<Tensor, Tensor, Tensor> csr_conv2d_backward_cpu(
    Tensor grad, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor crow_t, Tensor col_t,
    Tensor perm, std::vector<bool> output_mask, std::vector<int64_t> kernel_size,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    int64_t groups, std::string variant) {
  SPARSEKERN_CHECK(variant == "patch" || variant == "auto",
                   "Expected variant to be 'patch' in native CPU code. Got '", variant, "'.");
  SPARSEKERN_CHECK(output_mask.size() == 3, "Expected output_mask to have 3 entries. Got ",
                   output_mask.size(), ".");
  dtype_of(x, "x");
  const ConvShape shape(x, crow.numel() - 1, kernel_size, stride, padding, dilation, groups);
  SPARSEKERN_CHECK(grad.dim() == 4 && grad.size(0) == shape.batch &&
                       grad.size(1) == shape.out_channels && grad.size(2) == shape.out_height &&
                       grad.size(3) == shape.out_width,
                   "Expected grad to have the shape of the output. Got another.");
  if (values.scalar_type() == ScalarType::Double)
    return backward<double>(grad, x, values, crow, col, crow_t, col_t, perm, shape, output_mask);
  return backward<float>(grad, x, values, crow, col, crow_t, col_t, perm, shape, output_mask);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_conv2d_backward", TORCH_BOX(&csr_conv2d_backward_cpu));
}

}  // namespace sparsekern
