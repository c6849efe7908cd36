// A convolution seen from its outputs: patches of pixels, and what has to be packed for them.
//
// Forward, dx and dvalues are the same sentence, out[n][r][i][j] = sum over row r's entries of
// w * in[n][channel][i * step_h + dh[ky]][j * step_w + dw[kx]], so one view serves all three.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../common/ceil_div.h"
#include "../isa/kernels.h"

namespace sparsekern {

struct Size2 {
  int64_t h, w;
};

constexpr int64_t kAbsent = int64_t(1) << 40;  // an offset of a kernel row or column without part

struct ConvView {
  int64_t batch, channels, height, width;       // of `in`
  int64_t out_channels, out_height, out_width;  // pixels counted in this view's own steps
  Size2 step;
  std::vector<int64_t> dh, dw;  // one a kernel row or column, or kAbsent
  int64_t groups;

  int64_t taps() const { return int64_t(dh.size() * dw.size()); }
};

// Patches of ph x pw pixels of `images` images: at most 64 lanes. Every kernel column has a copy of
// the patch shifted by it, so that the lanes of a tap (ky, kx) are contiguous: kernel rows share the
// rows of a copy. Small images are taken together; then each kernel row has its own rows.
class Patches {
 public:
  Patches(const ConvView& view, int64_t nnz) : view_(view) {
    for (size_t k = 0; k < view.dw.size(); ++k)
      if (view.dw[k] != kAbsent) shifts_.push_back(int32_t(view.dw[k]));
    choose_shape(nnz);
    plan_rows();
  }

  // Tiles of a batch: a patch of one image, or a few whole images.
  int64_t tiles() const {
    return together_ > 1 ? ceil_div(view_.batch, together_) : view_.batch * patches_h_ * patches_w_;
  }
  int width() const { return width_; }  // lanes a kernel works on, padding included
  int64_t lanes() const { return together_ * ph_ * pw_; }
  int64_t channel_size() const { return channel_size_; }
  // Elements of a packed tile; reading a full tile behind the last tap stays inside.
  int64_t panel_size() const { return view_.channels * channel_size_ + kTileWidth; }
  int64_t output_size(int64_t rows) const { return rows * width_ + kTileWidth; }

  // First element of a tap in its channel, or -1 where the tap has no part in this view.
  std::vector<int32_t> tap_offsets() const {
    std::vector<int32_t> offsets;
    for (size_t ky = 0; ky < view_.dh.size(); ++ky) {
      int64_t copy = 0;
      for (size_t kx = 0; kx < view_.dw.size(); ++kx) {
        const bool present = view_.dh[ky] != kAbsent && view_.dw[kx] != kAbsent;
        offsets.push_back(present ? int32_t(copy * copy_size_ + row_begin_[ky]) : -1);
        if (view_.dw[kx] != kAbsent) ++copy;
      }
    }
    return offsets;
  }

  // Packs channels [first, first + count) of one tile.
  template <typename T>
  void pack(const PanelKernels<T>& kernels, const T* in, int64_t tile, int64_t first, int64_t count,
            T* panel) const {
    T* target = panel + first * channel_size_;
    // SAFETY: kernels read whole tiles; what lies between and behind the pixels must be finite.
    if (gaps_) std::fill_n(target, count * channel_size_, T(0));
    if (first + count == view_.channels)
      std::fill_n(target + count * channel_size_, kTileWidth, T(0));
    std::vector<PackRow> rows(rows_.size());
    for (int64_t image = 0; image < together_; ++image) {
      const Place at = place(tile, image);
      const bool exists = at.image < view_.batch;  // behind the last image there are zeros
      for (size_t r = 0; r < rows.size(); ++r) {
        const int64_t row = at.i * view_.step.h + rows_[r].row;
        const bool inside = exists && row >= 0 && row < view_.height;
        rows[r] = {rows_[r].target + image * ph_ * pw_, inside ? row * view_.width : -1};
      }
      const PatchSource source{view_.height,
                               view_.width,
                               at.j * view_.step.w,
                               view_.step.w,
                               rows.data(),
                               int64_t(rows.size()),
                               shifts_.data(),
                               int64_t(shifts_.size()),
                               pw_,
                               copy_size_,
                               channel_size_};
      const int64_t plane = (exists ? at.image : 0) * view_.channels + first;
      kernels.pack_patch(in + plane * view_.height * view_.width, source, count, target);
    }
  }

  // Tiles that read the same images; runs of consecutive tiles should be multiples of it.
  int64_t tiles_together() const { return together_ > 1 ? 1 : patches_h_ * patches_w_; }

  // Reads what this tile and those after it need once from end to end, where the tile begins a new
  // band of rows (or `anew`, at the start of a run).
  // PERF: patches are read in pieces a plane apart, which no hardware prefetcher follows, and
  // software prefetches do not keep up: packing 128 channels of 16 x 16 takes 6.2 ms with them,
  // 6.7 without, 1.6 after this sweep (Zen 5, 16.8 MB, one thread).
  template <typename T>
  void bring_in(const T* in, int64_t tile, bool anew) const {
    const int64_t plane = view_.height * view_.width;
    if (together_ > 1) {
      const int64_t first = tile * together_ * view_.channels * plane;
      const int64_t last = std::min(first + together_ * view_.channels * plane,
                                    view_.batch * view_.channels * plane);
      return sweep(in + first, in + last);
    }
    const int64_t patch = tile % (patches_h_ * patches_w_);
    const int64_t patch_row = patch / patches_w_, band = band_rows<T>();
    if (!anew && (patch % patches_w_ != 0 || patch_row % band != 0)) return;
    const T* image = in + tile / (patches_h_ * patches_w_) * view_.channels * plane;
    if (band >= patches_h_) return sweep(image, image + view_.channels * plane);
    const int64_t first_row = patch_row / band * band * ph_ * view_.step.h;
    const int64_t last_row = first_row + band * ph_ * view_.step.h + ph_;
    const int64_t begin = std::min(view_.height, first_row) * view_.width;
    const int64_t end = std::min(view_.height, last_row) * view_.width;
    for (int64_t c = 0; c < view_.channels; ++c)
      sweep(image + c * plane + begin, image + c * plane + end);
  }

  // Writes rows [first, first + count) of a finished tile; `out` begins at pixel (0, 0) of the view,
  // with strides between its images, channels, rows and columns.
  template <typename T>
  void unpack(const PanelKernels<T>& kernels, const T* outputs, const T* bias, int64_t tile,
              int64_t first, int64_t count, T* out, int64_t channel_stride, Size2 stride) const {
    for (int64_t image = 0; image < together_; ++image) {
      const Place at = place(tile, image);
      if (at.image >= view_.batch) break;
      const PatchTarget target{std::min(ph_, view_.out_height - at.i),
                               std::min(pw_, view_.out_width - at.j),
                               pw_,
                               stride.h,
                               stride.w,
                               channel_stride};
      T* begin = out + (at.image * view_.out_channels + first) * channel_stride + at.i * stride.h +
                 at.j * stride.w;
      kernels.unpack_patch(outputs + image * ph_ * pw_, bias, count, width_, target, begin);
    }
  }

  // The same patches over a tensor that is indexed by output pixels (dy in dvalues).
  Patches of_outputs() const {
    Patches other(*this);
    ConvView& view = other.view_;
    view.channels = view_.out_channels;
    view.height = view_.out_height;
    view.width = view_.out_width;
    view.step = {1, 1};
    view.dh = {0};
    view.dw = {0};
    other.shifts_ = {0};
    other.rows_.clear();
    for (int64_t i = 0; i < ph_; ++i) other.rows_.push_back({i * pw_, i});
    other.row_begin_ = {0};
    other.copy_size_ = other.channel_size_ = width_;
    other.gaps_ = lanes() < width_;
    return other;
  }

 private:
  struct PlannedRow {
    int64_t target, row;  // row of `in`, counted from the patch's first
  };
  struct Place {
    int64_t image, i, j;
  };

  // Rows of patches whose input fills a good part of a core's second cache.
  template <typename T>
  int64_t band_rows() const {
    constexpr int64_t kBandBytes = int64_t(384) << 10;
    const int64_t bytes = view_.channels * ph_ * view_.step.h * view_.width * int64_t(sizeof(T));
    return std::max<int64_t>(1, kBandBytes / std::max<int64_t>(1, bytes));
  }

  // Reads one element of every cache line.
  template <typename T>
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

  Place place(int64_t tile, int64_t image) const {
    if (together_ > 1) return {tile * together_ + image, 0, 0};
    const int64_t per_image = patches_h_ * patches_w_;
    const int64_t patch = tile % per_image;
    return {tile / per_image, patch / patches_w_ * ph_, patch % patches_w_ * pw_};
  }

  // Rows of `in` that a patch of `ph` rows needs in each copy: shared by the kernel's rows, or each
  // kernel row its own.
  int64_t shared_rows(int64_t ph) const {
    int64_t rows = 0;
    for (int64_t r = 0; r < view_.step.h; ++r) {
      const Span span = span_of(r);
      if (span.first <= span.last) rows += (span.last - span.first) / view_.step.h + ph;
    }
    return rows;
  }
  int64_t own_rows(int64_t ph) const {
    return ph * (int64_t(view_.dh.size()) - std::count(view_.dh.begin(), view_.dh.end(), kAbsent));
  }

  struct Span {
    int64_t first, last;
  };
  int64_t residue(int64_t d) const { return ((d % view_.step.h) + view_.step.h) % view_.step.h; }
  Span span_of(int64_t wanted) const {
    Span span{kAbsent, -kAbsent};
    for (int64_t d : view_.dh)
      if (d != kAbsent && residue(d) == wanted) {
        span.first = std::min(span.first, d);
        span.last = std::max(span.last, d);
      }
    return span;
  }

  // PERF: the shape with the least work a batch: vectors multiplied, packed and written back.
  void choose_shape(int64_t nnz) {
    const int64_t height = view_.out_height, width = view_.out_width;
    int64_t best = -1;
    const auto consider = [&](int64_t ph, int64_t pw, int64_t together) {
      const int64_t lanes = ph * pw * together;
      const int64_t tile_width = lanes > 32 ? kTileWidth : lanes > 16 ? 32 : 16;
      const int64_t count = together > 1 ? ceil_div(view_.batch, together)
                                         : view_.batch * ceil_div(height, ph) * ceil_div(width, pw);
      const int64_t row_vectors = ceil_div(pw, 16) * together;
      const int64_t rows = together > 1 ? own_rows(ph) : std::min(own_rows(ph), shared_rows(ph));
      const int64_t packed = view_.channels * int64_t(shifts_.size()) * rows * row_vectors;
      const int64_t written = view_.out_channels * ph * row_vectors;
      const int64_t work = count * (2 * nnz * (2 + tile_width / 16) + 3 * packed + 3 * written);
      if (best >= 0 && work >= best) return;
      best = work;
      ph_ = ph;
      pw_ = pw;
      together_ = together;
      width_ = int(tile_width);
    };
    for (int64_t parts = 1; parts <= std::max<int64_t>(1, width); ++parts) {
      const int64_t pw = std::max<int64_t>(1, ceil_div(width, parts));
      if (pw > kTileWidth) continue;
      for (const int64_t wide : {pw, round_up(pw, 8), round_up(pw, 16)}) {
        if (wide > kTileWidth) continue;
        const int64_t most = std::max<int64_t>(1, std::min(height, kTileWidth / wide));
        consider(std::max<int64_t>(1, ceil_div(height, ceil_div(height, most))), wide, 1);
      }
      if (pw <= 8) break;
    }
    const int64_t pixels = height * width;
    if (pixels > 0 && pixels <= kTileWidth / 2 && view_.batch > 1)
      consider(height, width, std::min(view_.batch, kTileWidth / pixels));
    patches_h_ = ceil_div(height, ph_);
    patches_w_ = ceil_div(width, pw_);
  }

  void plan_rows() {
    row_begin_.assign(view_.dh.size(), 0);
    const bool own = together_ > 1 || own_rows(ph_) < shared_rows(ph_);
    const int64_t end = own ? plan_own_rows() : plan_shared_rows();
    const int64_t used = end * int64_t(shifts_.size());
    copy_size_ = end;
    channel_size_ = round_up(std::max<int64_t>(1, used), 16);
    gaps_ = used < channel_size_ || (together_ > 1 && lanes() < width_);
  }

  int64_t plan_own_rows() {
    const int64_t size = together_ > 1 ? width_ : ph_ * pw_;
    int64_t end = 0;
    for (size_t ky = 0; ky < view_.dh.size(); ++ky) {
      if (view_.dh[ky] == kAbsent) continue;
      row_begin_[ky] = end;
      for (int64_t i = 0; i < ph_; ++i)
        rows_.push_back({end + i * pw_, view_.dh[ky] + i * view_.step.h});
      end += size;
    }
    return end;
  }

  // Rows of the same residue follow each other, so a kernel row is a shift by whole rows.
  int64_t plan_shared_rows() {
    int64_t end = 0;
    for (int64_t r = 0; r < view_.step.h; ++r) {
      const Span span = span_of(r);
      if (span.first > span.last) continue;
      for (size_t ky = 0; ky < view_.dh.size(); ++ky) {
        const int64_t d = view_.dh[ky];
        if (d != kAbsent && residue(d) == r)
          row_begin_[ky] = end + (d - span.first) / view_.step.h * pw_;
      }
      const int64_t count = (span.last - span.first) / view_.step.h + ph_;
      for (int64_t i = 0; i < count; ++i)
        rows_.push_back({end + i * pw_, span.first + i * view_.step.h});
      end += count * pw_;
    }
    return end;
  }

  ConvView view_;
  std::vector<int32_t> shifts_;     // column offset of each copy
  std::vector<PlannedRow> rows_;       // of one copy
  std::vector<int64_t> row_begin_;  // where a kernel row begins within a copy
  int64_t ph_ = 1, pw_ = 1, together_ = 1, patches_h_ = 0, patches_w_ = 0;
  int width_ = 16;
  int64_t copy_size_ = 0, channel_size_ = 0;
  bool gaps_ = false;  // elements that no pixel fills
};

}  // namespace sparsekern
