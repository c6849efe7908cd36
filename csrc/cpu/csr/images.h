// Images as tensors hold them, NCHW or channels_last, and the planes that kernels read of them.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "../isa/kernels.h"
#include "../output.h"
#include "batch.h"

namespace sparsekern {

struct Size2 {
  int64_t h, w;
};

// Where pixels lie: (n, c, i, j) at element origin + n * image + c * channel + i * row + j * col.
struct PixelMap {
  int64_t origin, image, channel, row, col;
  bool channels_last;

  static PixelMap of(bool channels_last, int64_t channels, Size2 size) {
    const int64_t plane = size.h * size.w;
    if (channels_last) return {0, plane * channels, 1, size.w * channels, channels, channels_last};
    return {0, plane * channels, plane, size.w, 1, channels_last};
  }
  // Every `step`-th pixel from `first` on.
  PixelMap every(Size2 first, Size2 step) const {
    return {origin + first.h * row + first.w * col,
            image,
            channel,
            step.h * row,
            step.w * col,
            channels_last};
  }
};

// Pixels that a kernel writes; planes (not channels_last) are of the kernel's own type.
struct PixelTarget {
  void* data;
  Dtype dtype;
  PixelMap map;

  void* at(int64_t element) const {
    const int64_t size = dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
    return static_cast<char*>(data) + element * size;
  }
};

// A part of images: `rows` by `cols` pixels from (row, col) on.
struct Band {
  int64_t image, images, row, rows, col, cols;
};

// That part as planes of T: pixel (n, c, h, w) of the images is
// data[(n - image) * image_stride + c * channel_stride + (h - row) * row_stride + w - col].
template <typename T>
struct Planes {
  const T* data;
  int64_t image_stride, channel_stride, row_stride;
  Band part;

  PixelMap map() const {
    return {-part.image * image_stride - part.row * row_stride - part.col,
            image_stride,
            channel_stride,
            row_stride,
            1,
            false};
  }
};

// As torch decides it, but for images of which both are true: those are NCHW.
inline bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// A result in the dtype and memory format of `like`. Planes of 16-bit types are written as T first.
template <typename T>
class ImageOutput {
 public:
  ImageOutput(const std::vector<int64_t>& sizes, const Tensor& like)
      : dtype_(like.scalar_type()),
        channels_last_(is_channels_last(like)),
        tensor_(empty_output(sizes, channels_last_ ? dtype_ : scalar_type<T>(), channels_last_)),
        target_{tensor_.mutable_data_ptr(), dtype_of(tensor_, "x"),
                PixelMap::of(channels_last_, sizes[1], {sizes[2], sizes[3]})} {}

  const PixelTarget& target() const { return target_; }
  int64_t numel() const { return tensor_.numel(); }
  void clear() const {
    if (numel() > 0)
      std::memset(tensor_.mutable_data_ptr(), 0, size_t(numel()) * size_t(tensor_.element_size()));
  }
  Tensor finished() const {
    return tensor_.scalar_type() == dtype_ ? tensor_ : torch::stable::to(tensor_, dtype_);
  }

 private:
  const ScalarType dtype_;
  const bool channels_last_;
  const Tensor tensor_;
  const PixelTarget target_;
};

// A float or double tensor without gaps; 16-bit activations are widened.
inline Tensor widened(const Tensor& t, ScalarType dtype) {
  Tensor wide = t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

// Images to read. NCHW of T is read where it is; channels_last of any float type is turned into
// planes, band after band in a thread's own cache. Anything else is copied to NCHW of T first.
template <typename T>
class Images {
 public:
  explicit Images(const Tensor& t)
      : channels_last_(is_channels_last(t)),
        tensor_(channels_last_ ? t : widened(t, scalar_type<T>())),
        dtype_(dtype_of(tensor_, "x")),
        batch_(t.size(0)),
        channels_(t.size(1)),
        size_{t.size(2), t.size(3)} {}

  bool in_place() const { return !channels_last_; }
  const T* data() const { return static_cast<const T*>(tensor_.data_ptr()); }
  const Tensor& tensor() const { return tensor_; }
  Dtype dtype() const { return dtype_; }

  // All images as planes of `size` (that of the images, or all pixels in one row); they lie in `copy`
  // where they have to be turned.
  Planes<T> whole(Size2 size, Tensor* copy) const {
    const int64_t plane = size.h * size.w;
    const Band all{0, batch_, 0, size.h, 0, size.w};
    if (in_place()) return {data(), channels_ * plane, plane, size.w, all};
    const int64_t padded = round_up(plane, 16);
    *copy = empty_output({batch_, channels_, padded}, scalar_type<T>());
    T* planes = static_cast<T*>(copy->mutable_data_ptr());
    constexpr int64_t kStrip = 32;  // channels turned by one task
    const int64_t strips = ceil_div(channels_, kStrip);
    parallel_tasks(batch_ * strips, batch_ * channels_ * plane, [&](int64_t task, int64_t) {
      const int64_t image = task / strips, first = task % strips * kStrip;
      turn(image * plane, plane, first, std::min(kStrip, channels_ - first), padded,
           planes + (image * channels_ + first) * padded);
    });
    return {planes, channels_ * padded, padded, size.w, all};
  }

  // Reads every cache line of a part once, from end to end.
  // PERF: patches are read in pieces a plane apart, which no hardware prefetcher follows, and
  // software prefetches do not keep up: packing 128 channels of 16 x 16 takes 6.2 ms with them,
  // 6.7 without, 1.6 after this sweep (Zen 5, 16.8 MB, one thread).
  void sweep(const Band& part, int64_t width) const {
    const int64_t plane = size_.h * size_.w;
    const T* planes = data() + part.image * channels_ * plane;
    const int64_t count = part.images * channels_;
    if (part.rows * width == plane) return sweep(planes, planes + count * plane);
    for (int64_t c = 0; c < count; ++c) {
      const T* rows = planes + c * plane + part.row * width;
      sweep(rows, rows + part.rows * width);
    }
  }

  // One part as planes in scratch of size_of(part) elements, and what writes them there. Rows and
  // columns may be those of images whose pixels were put in one row of `width`.
  Planes<T> turned(const Band& part, int64_t width, T* planes) const {
    const Strides s(part, width);
    return {planes, channels_ * s.channel, s.channel, s.row, part};
  }
  void turn(const Band& part, int64_t width, T* planes) const {
    const Strides s(part, width);
    for (int64_t image = 0; image < part.images; ++image) {
      const int64_t first = (part.image + image) * size_.h * size_.w + part.row * width + part.col;
      T* target = planes + image * channels_ * s.channel;
      if (part.cols == width) {
        turn(first, part.rows * width, 0, channels_, s.channel, target);
      } else {
        for (int64_t row = 0; row < part.rows; ++row)
          turn(first + row * width, part.cols, 0, channels_, s.channel, target + row * s.row);
      }
    }
  }
  int64_t size_of(const Band& part, int64_t width) const {
    return part.images * channels_ * Strides(part, width).channel;
  }

 private:
  // PERF: planes of a power of two share the sets of L1; 16 elements more and they do not.
  struct Strides {
    int64_t row, channel;
    Strides(const Band& part, int64_t width)
        : row(part.cols == width ? width : round_up(part.cols, 16)),
          channel(round_up(part.rows * row, 32) + 16) {}
  };

  // `count` channels of consecutive pixels of a channels_last tensor, as rows `stride` apart; up to
  // 15 zeros follow each.
  void turn(int64_t pixel, int64_t pixels, int64_t first, int64_t count, int64_t stride,
            T* planes) const {
    const char* from = static_cast<const char*>(tensor_.data_ptr()) +
                       (pixel * channels_ + first) * int64_t(tensor_.element_size());
    kernels<T>().pack(from, dtype_, channels_, pixels, count, round_up(pixels, 16), stride, planes);
  }

  static void sweep(const T* begin, const T* end) {
    constexpr int64_t kLine = 64 / int64_t(sizeof(T));
    T sums[4] = {};
    const T* p = begin;
    for (; p + 3 * kLine < end; p += 4 * kLine)
      for (int i = 0; i < 4; ++i) sums[i] += p[i * kLine];
    for (; p < end; p += kLine) sums[0] += *p;
    volatile T sink = (sums[0] + sums[1]) + (sums[2] + sums[3]);  // keeps the loads
    (void)sink;
  }

  const bool channels_last_;
  const Tensor tensor_;
  const Dtype dtype_;
  const int64_t batch_, channels_;
  const Size2 size_;
};

}  // namespace sparsekern
