// Formula    dx = the transposed convolution of dy;  dvalues[j] = sum over images and pixels of
//            dy[o] x[c, shifted by (ky, kx)];  dbias[o] = sum of dy[o].
// Mapping    dx and dvalues in one walk over the transposed index, whose rows are input channels: dy
//            is packed once, x is read where it lies. Of stride s, s x s classes of pixels, each of
//            which sees its own taps. Threads take chunks of tiles, each chunk with sums of dvalues
//            of its own that are added in order; few tiles are all packed, and rows are shared out.
// Tile       as conv2d.cpp, over pixels of dx.
// Arithmetic accumulated in the dtype of `values`; the chunks follow from the shape alone: no
//            atomics, the same bits for any number of threads.
// Contract   sparsekern/ops/csr/conv2d.py; patches.h, walk.h; bodies: ../isa/.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "convolve.h"
#include "index.h"

namespace sparsekern {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Pixels h of dx with (h + padding) % stride == residue, along one dimension.
struct PixelClass {
  int64_t first, count;         // h = first + i * stride
  std::vector<int64_t> shifts;  // of dy, one a kernel row: kAbsent where it has no part
  bool has_taps = false;

  PixelClass(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
             int64_t residue) {
    const int64_t q = -floor_div(residue - padding, stride);  // least q with q s + r - p >= 0
    first = q * stride + residue - padding;
    count = first < size ? (size - 1 - first) / stride + 1 : 0;
    for (int64_t k = 0; k < kernel; ++k) {
      const bool present = (k * dilation) % stride == residue;
      has_taps = has_taps || present;
      shifts.push_back(present ? q - (k * dilation - residue) / stride : kAbsent);
    }
  }
};

// Pixels (i, j) of a class of dx are the elements first + (i, j) * step of images of this size.
struct ClassPixels {
  Size2 size, first, step;

  PixelTarget of(const PixelTarget& images) const {
    return {images.data, images.dtype, images.map.every(first, step)};
  }
};

// One class of pixels of dx, and what dvalues gets through them: every entry of the weight belongs
// to one class, that of its tap.
template <typename T>
class Gradients {
 public:
  Gradients(const ConvView& view, const SparseKernel<T>& kernel, const ClassPixels& pixels,
            const Images<T>& grad, const Images<T>& x, const PixelTarget* dx, T* dvalues)
      : grad_images_(grad),
        x_images_(x),
        dvalues_(dvalues),
        pixels_(pixels),
        dx_(dx != nullptr ? pixels.of(*dx) : PixelTarget{}),
        wants_dx_(dx != nullptr),
        grad_(view, kernel.nnz),
        x_(grad_.of_outputs(pixels.size, pixels.first, pixels.step)),
        walk_(kernel, grad_, view.taps(), scratch_),
        channels_(view.channels),
        grad_size_(round_up(grad_.panel_size(), 16)),
        x_size_(round_up(x_.panel_size(), 16)),
        output_size_(round_up(grad_.output_size(walk_.row_block()), 16)) {}

  void run() {
    const int64_t tiles = grad_.tiles();
    work_ = tiles * grad_.width() * (2 * walk_.nnz() + channels_ + walk_.rows());
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
  static constexpr int64_t kWaveBytes = int64_t(8) << 20;

  // Chunks of tiles, each with sums of its own that are added in order.
  void by_chunks(int64_t tiles) {
    const int64_t threads = thread_count(), nnz = walk_.nnz();
    T* panels = scratch_.take<T>(threads * grad_size_);
    T* x_panels = scratch_.take<T>(threads * x_size_);
    T* outputs = scratch_.take<T>(threads * output_size_);
    T* sums = scratch_.take<T>(kChunks * nnz);
    const Bands<T> grad_bands(grad_images_, grad_), x_bands(x_images_, x_);
    T* grad_turned = scratch_.take<T>(threads * grad_bands.size());
    T* x_turned = scratch_.take<T>(threads * x_bands.size());
    parallel_tasks(kChunks, work_, [&](int64_t chunk, int64_t slot) {
      const int64_t first = tiles * chunk / kChunks, last = tiles * (chunk + 1) / kChunks;
      T* panel = panels + slot * grad_size_;
      T* x_panel = x_panels + slot * x_size_;
      for (int64_t tile = first; tile < last; ++tile) {
        const Planes<T> grad =
            grad_bands.bring_in(tile, tile == first, grad_turned + slot * grad_bands.size());
        grad_.pack(grad, tile, 0, channels_, panel);
        const Planes<T> x = x_bands.bring_in(tile, tile == first, x_turned + slot * x_bands.size());
        pack_x(x, tile, x_panel);
        for (int64_t block = 0; block < walk_.blocks(); ++block)
          add_tile(x, tile, block, panel, x_panel, tile > first, outputs + slot * output_size_,
                   sums + chunk * nnz);
      }
    });
    const int32_t* sources = walk_.sources();
    parallel_range(nnz, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        T total = sums[j];
        for (int64_t chunk = 1; chunk < kChunks; ++chunk) total += sums[chunk * nnz + j];
        dvalues_[sources[j]] = total;
      }
    });
  }

  // Waves of packed tiles; a task takes a block of rows through the wave.
  void by_rows(int64_t tiles) {
    const int64_t fitting = kWaveBytes / (int64_t(sizeof(T)) * (x_size_ + grad_size_));
    const int64_t wave = std::min(tiles, std::max<int64_t>(4, fitting));
    T* panels = scratch_.take<T>(wave * grad_size_);
    T* x_panels = scratch_.take<T>(wave * x_size_);
    T* outputs = scratch_.take<T>(thread_count() * output_size_);
    T* sums = scratch_.take<T>(walk_.nnz());
    Tensor copies[2];
    const Planes<T> grad =
        grad_images_.whole({grad_.view().height, grad_.view().width}, &copies[0]);
    const Planes<T> x = x_images_.whole(pixels_.size, &copies[1]);
    for (int64_t first = 0; first < tiles; first += wave) {
      const int64_t count = std::min(wave, tiles - first);
      parallel_tasks(2 * count, work_, [&](int64_t task, int64_t) {
        const int64_t tile = task / 2;
        if (task % 2 == 0) {
          pack_x(x, first + tile, x_panels + tile * x_size_);
        } else {
          grad_.pack(grad, first + tile, 0, channels_, panels + tile * grad_size_);
        }
      });
      parallel_tasks(walk_.blocks(), work_, [&](int64_t block, int64_t slot) {
        for (int64_t tile = 0; tile < count; ++tile)
          add_tile(x, first + tile, block, panels + tile * grad_size_, x_panels + tile * x_size_,
                   first + tile > 0, outputs + slot * output_size_, sums);
      });
    }
    const int32_t* sources = walk_.sources();
    for (int64_t j = 0; j < walk_.nnz(); ++j) dvalues_[sources[j]] = sums[j];
  }

  // Where the kernels find x: in its planes, or packed.
  bool x_lanes(const Planes<T>& x, int64_t tile, Patches::Lanes* lanes) const {
    return grad_.in_place(tile, x.map().every(pixels_.first, pixels_.step), lanes);
  }

  void pack_x(const Planes<T>& x, int64_t tile, T* x_panel) const {
    Patches::Lanes lanes;
    if (!x_lanes(x, tile, &lanes)) x_.pack(x, tile, 0, walk_.rows(), x_panel);
  }

  void add_tile(const Planes<T>& x_planes, int64_t tile, int64_t block, const T* panel,
                const T* x_panel, bool accumulate, T* scratch, T* sums) const {
    const int64_t row = block * walk_.row_block();
    Patches::Lanes lanes{};
    const TileRows<const T> x = x_lanes(x_planes, tile, &lanes)
                                    ? lanes.of(x_planes.data, row, x_planes.channel_stride)
                                    : x_.packed(x_panel + row * x_.channel_size());
    const int width = grad_.width();
    if (!wants_dx_) {
      for (int64_t p = 0; p < walk_.panels(); ++p)
        kernels<T>().convolve_dvalues(walk_.cell(block, p), walk_.offsets(), panel, width, x,
                                      accumulate, sums);
      return;
    }
    const TileOutput<T> output(grad_, dx_, tile, row, scratch);
    for (int64_t p = 0; p < walk_.panels(); ++p)
      kernels<T>().convolve_both(walk_.cell(block, p), walk_.values(), walk_.offsets(), panel,
                                 width, x, accumulate, sums, output.before(p),
                                 output.after(p, walk_.panels()));
    output.finish(std::min(walk_.row_block(), walk_.rows() - row));
  }

  ScratchFrame scratch_;
  const Images<T>& grad_images_;
  const Images<T>& x_images_;
  T* dvalues_;
  const ClassPixels pixels_;
  const PixelTarget dx_;
  const bool wants_dx_;
  const Patches grad_, x_;
  const Walk<T> walk_;
  const int64_t channels_, grad_size_, x_size_, output_size_;
  int64_t work_ = 0;
};

// dx and dvalues, each where it is not null.
template <typename T>
void gradients(const ConvShape& s, const SparseKernel<T>& kernel, const Images<T>& grad,
               const Images<T>& x, const ImageOutput<T>* dx, T* dvalues) {
  const bool whole = s.stride.h == 1 && s.stride.w == 1;  // all pixels are in one class
  std::vector<PixelClass> rows, cols;
  for (int64_t r = 0; r < s.stride.h; ++r)
    rows.emplace_back(s.height, s.kernel.h, s.stride.h, s.padding.h, s.dilation.h, r);
  for (int64_t r = 0; r < s.stride.w; ++r)
    cols.emplace_back(s.width, s.kernel.w, s.stride.w, s.padding.w, s.dilation.w, r);
  const auto idle = [](const PixelClass& c) { return c.count == 0 || !c.has_taps; };
  if (std::any_of(rows.begin(), rows.end(), idle) || std::any_of(cols.begin(), cols.end(), idle)) {
    if (dvalues != nullptr) std::fill_n(dvalues, kernel.nnz, T(0));
    if (dx != nullptr) dx->clear();
  }
  for (const PixelClass& h : rows) {
    for (const PixelClass& w : cols) {
      if (idle(h) || idle(w)) continue;
      ConvView view{s.batch, s.out_channels, s.out_height, s.out_width, s.channels, h.count,
                    w.count, {1, 1},         h.shifts,     w.shifts,    s.groups};
      ClassPixels pixels{{s.height, s.width}, {h.first, w.first}, s.stride};
      if (whole && view.flattened().out_height != view.out_height) {
        view = view.flattened();
        pixels.size = {1, view.out_width};
      }
      if (dvalues == nullptr) {
        convolve(view, kernel, grad, static_cast<const T*>(nullptr), Activation::kNone,
                 pixels.of(dx->target()));
      } else {
        const PixelTarget* target = dx != nullptr ? &dx->target() : nullptr;
        Gradients<T>(view, kernel, pixels, grad, x, target, dvalues).run();
      }
    }
  }
}

// sums[o] += sum of channel o's plane.
template <typename T>
void add_planes(const T* planes, int64_t plane, int64_t channels, T* sums) {
  constexpr int64_t kLanes = 16;
  for (int64_t o = 0; o < channels; ++o) {
    const T* p = planes + o * plane;
    T lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= plane; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += p[i + lane];
    for (int64_t lane = 0; i < plane; ++i, ++lane) lanes[lane] += p[i];
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    sums[o] += lanes[0];
  }
}

// The same for an image of channels_last.
template <typename E, typename T>
void add_pixels(const E* image, int64_t plane, int64_t channels, T* sums) {
  constexpr int64_t kLanes = 16;
  for (int64_t first = 0; first < channels; first += kLanes) {
    const int64_t count = std::min(kLanes, channels - first);
    const E* p = image + first;
    T lanes[kLanes] = {};
    if (count == kLanes) {
      for (int64_t i = 0; i < plane; ++i, p += channels)
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += widen(p[lane]);
    } else {
      for (int64_t i = 0; i < plane; ++i, p += channels)
        for (int64_t lane = 0; lane < count; ++lane) lanes[lane] += widen(p[lane]);
    }
    for (int64_t lane = 0; lane < count; ++lane) sums[first + lane] += lanes[lane];
  }
}

template <typename T>
void add_image(const Images<T>& images, int64_t image, int64_t plane, int64_t channels, T* sums) {
  const int64_t first = image * plane * channels;
  const void* data = images.tensor().data_ptr();
  if (images.in_place()) {
    add_planes(static_cast<const T*>(data) + first, plane, channels, sums);
  } else if (images.dtype() == Dtype::kBFloat16) {
    add_pixels(static_cast<const BFloat16*>(data) + first, plane, channels, sums);
  } else if (images.dtype() == Dtype::kHalf) {
    add_pixels(static_cast<const Half*>(data) + first, plane, channels, sums);
  } else {
    add_pixels(static_cast<const T*>(data) + first, plane, channels, sums);
  }
}

// dbias[o] = sum of dy[o]: chunks of images, whose sums are added in order.
template <typename T>
void bias_gradient(const ConvShape& s, const Images<T>& grad, T* dbias) {
  constexpr int64_t kChunks = 16;
  ScratchFrame scratch;
  T* sums = scratch.take<T>(kChunks * s.out_channels);
  const int64_t plane = s.out_height * s.out_width;
  parallel_tasks(kChunks, s.batch * s.out_channels * plane, [&](int64_t chunk, int64_t) {
    T* sum = sums + chunk * s.out_channels;
    std::fill_n(sum, s.out_channels, T(0));
    const int64_t last = s.batch * (chunk + 1) / kChunks;
    for (int64_t image = s.batch * chunk / kChunks; image < last; ++image)
      add_image(grad, image, plane, s.out_channels, sum);
  });
  std::copy_n(sums, s.out_channels, dbias);
  for (int64_t chunk = 1; chunk < kChunks; ++chunk)
    for (int64_t o = 0; o < s.out_channels; ++o) dbias[o] += sums[chunk * s.out_channels + o];
}

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
  const Images<T> in(x), dy(grad);
  const auto make = [](int64_t size) { return empty_output({size}, scalar_type<T>()); };
  std::optional<ImageOutput<T>> dx;
  if (wanted[0]) dx.emplace({shape.batch, shape.channels, shape.height, shape.width}, x);
  Tensor dvalues = make(wanted[1] ? nnz : 0);
  Tensor dbias = make(wanted[2] ? shape.out_channels : 0);
  const bool empty = grad.numel() == 0;
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  const auto* values_data = static_cast<const T*>(values.data_ptr());
  if (empty) {
    if (dx) dx->clear();
    std::fill_n(data(dvalues), dvalues.numel(), T(0));
    std::fill_n(data(dbias), dbias.numel(), T(0));
  } else if (wanted[0] || wanted[1]) {
    check_int32(crow_t, "crow_t", shape.group_in() + 1);
    check_int32(col_t, "col_t", nnz);
    check_int32(perm, "perm", nnz);
    const auto* crow_t_data = static_cast<const int32_t*>(crow_t.data_ptr());
    check_row_bounds(crow_t_data, shape.group_in(), nnz);
    if (is_debugging())
      check_transposed(
          IndexRows(crow, col, shape.group_in() * shape.taps()),
          IndexRows(crow_t, col_t, shape.out_channels * shape.taps(), "crow_t", "col_t"), perm,
          shape.taps());
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
    gradients(shape, kernel, dy, in, dx ? &*dx : nullptr, wanted[1] ? data(dvalues) : nullptr);
  }
  if (wanted[2] && !empty) bias_gradient(shape, dy, data(dbias));
  Tensor none = torch::stable::empty({0}, x.scalar_type());
  return {dx ? dx->finished() : none, dvalues, dbias};
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
