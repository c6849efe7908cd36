// A convolution seen from its outputs: patches of pixels, and what has to be packed for them.
//
// Forward, dx and dvalues are the same sentence, out[n][r][i][j] = sum over row r's entries of
// w * in[n][channel][i * step_h + dh[ky]][j * step_w + dw[kx]], so one view serves all three.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "images.h"

namespace sparsekern {

constexpr int64_t kAbsent = int64_t(1) << 40;  // an offset of a kernel row or column without part

struct ConvView {
  int64_t batch, channels, height, width;       // of `in`
  int64_t out_channels, out_height, out_width;  // pixels counted in this view's own steps
  Size2 step;
  std::vector<int64_t> dh, dw;  // one a kernel row or column, or kAbsent
  int64_t groups;

  int64_t taps() const { return int64_t(dh.size() * dw.size()); }

  // Where pixels have no neighbours, an image is one long row.
  ConvView flattened() const {
    const bool pointwise = taps() == 1 && dh[0] == 0 && dw[0] == 0 && step.h == 1 && step.w == 1;
    if (!pointwise || height != out_height || width != out_width) return *this;
    ConvView view(*this);
    view.width = view.out_width = height * width;
    view.height = view.out_height = 1;
    return view;
  }
};

// Patches of ph x pw pixels, of one image or of several side by side: at most 128 lanes, `pitch` a
// row, so that every vector is aligned. Every kernel column has a copy of the patch shifted by it,
// and kernel rows share the rows of a copy: the lanes of a tap (ky, kx) are contiguous.
class Patches {
 public:
  Patches(const ConvView& view, int64_t nnz) : view_(view) {
    for (size_t k = 0; k < view.dw.size(); ++k)
      if (view.dw[k] != kAbsent) shifts_.push_back(view.dw[k]);
    choose_shape(nnz);
    plan_rows();
  }

  // Tiles of a batch: patches of consecutive groups of images.
  int64_t tiles() const { return ceil_div(view_.batch, across_) * tiles_together(); }
  // Tiles of one group; runs of consecutive tiles should be multiples of it.
  int64_t tiles_together() const { return patches_h_ * patches_w_; }
  int width() const { return width_; }  // lanes a kernel works on, padding included
  int64_t channel_size() const { return channel_size_; }
  // Elements of a packed tile; reading a full tile behind the last tap stays inside.
  int64_t panel_size() const { return view_.channels * channel_size_ + kPatchWidth; }
  int64_t output_size(int64_t rows) const { return rows * width_ + kPatchWidth; }

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
  void pack(const Planes<T>& in, int64_t tile, int64_t first, int64_t count, T* panel) const {
    T* target = panel + first * channel_size_;
    // SAFETY: kernels read whole tiles; what lies between and behind the pixels must be finite.
    if (gaps_) std::fill_n(target, count * channel_size_, T(0));
    if (first + count == view_.channels)
      std::fill_n(target + count * channel_size_, kPatchWidth, T(0));
    std::vector<PackRow> rows(rows_.size());
    for (int64_t image = 0; image < across_; ++image) {
      const Place at = place(tile, image);
      const bool exists = at.image < view_.batch;  // behind the last image there are zeros
      for (size_t r = 0; r < rows.size(); ++r) {
        const int64_t row = at.i * view_.step.h + rows_[r].row - in.part.row;
        const bool inside = exists && row >= 0 && row < in.part.rows;
        rows[r] = {rows_[r].target + image * pw_, inside ? row * in.row_stride : -1};
      }
      const PatchSource source{in.channel_stride,
                               in.part.cols,
                               at.j * view_.step.w - in.part.col,
                               view_.step.w,
                               rows.data(),
                               int64_t(rows.size()),
                               shifts_.data(),
                               int64_t(shifts_.size()),
                               pw_,
                               copy_size_,
                               channel_size_};
      const T* planes = in.data + (exists ? at.image - in.part.image : 0) * in.image_stride;
      kernels<T>().pack_patch(planes + first * in.channel_stride, source, count, target);
    }
  }

  // The part of the input that this tile and its neighbours need: what fills a good part of a core's
  // second cache. Consecutive tiles share it; `begins` tells the first of them.
  Band band(int64_t tile, bool* begins) const {
    constexpr int64_t kBand = int64_t(96) << 10;  // elements
    const int64_t patch = tile % tiles_together();
    const int64_t i = patch / patches_w_, j = patch % patches_w_;
    const int64_t row_size = view_.channels * across_ * ph_ * view_.step.h;
    const int64_t wide = row_size * view_.width <= kBand
                             ? patches_w_
                             : std::max<int64_t>(1, kBand / (row_size * pw_ * view_.step.w));
    const int64_t tall =
        wide < patches_w_ ? 1 : std::max<int64_t>(1, kBand / (row_size * view_.width));
    const int64_t first_i = i / tall * tall, first_j = j / wide * wide;
    *begins = i == first_i && j == first_j;
    const int64_t image = tile / tiles_together() * across_;
    Band band{image, std::min(across_, view_.batch - image), 0, 0, 0, view_.width};
    int64_t low = kAbsent, high = -kAbsent;
    for (const PlannedRow& row : rows_) {
      low = std::min(low, row.row);
      high = std::max(high, row.row);
    }
    const int64_t last_i = std::min(first_i + tall, patches_h_) - 1;
    band.row = std::max<int64_t>(0, first_i * ph_ * view_.step.h + low);
    const int64_t end = std::min(view_.height, last_i * ph_ * view_.step.h + high + 1);
    band.rows = std::max<int64_t>(0, end - band.row);
    if (wide >= patches_w_ || shifts_.empty()) return band;
    const auto [left, right] = std::minmax_element(shifts_.begin(), shifts_.end());
    band.col = std::max<int64_t>(0, first_j * pw_ * view_.step.w + *left);
    const int64_t last_pixel = std::min((first_j + wide) * pw_, view_.out_width) - 1;
    band.cols = std::max<int64_t>(
        0, std::min(view_.width, last_pixel * view_.step.w + *right + 1) - band.col);
    return band;
  }

  const ConvView& view() const { return view_; }

  // Writes rows [first, first + count) of a finished tile; they are channels of the target.
  template <typename T>
  void unpack(const T* outputs, int64_t tile, int64_t first, int64_t count,
              const PixelTarget& target) const {
    const PixelMap& map = target.map;
    for (int64_t image = 0; image < across_; ++image) {
      const Place at = place(tile, image);
      if (at.image >= view_.batch) break;
      const int64_t rows = std::min(ph_, view_.out_height - at.i);
      const int64_t cols = std::min(pw_, view_.out_width - at.j);
      const T* from = outputs + image * pw_;
      const int64_t begin =
          map.origin + at.image * map.image + first * map.channel + at.i * map.row + at.j * map.col;
      if (!map.channels_last) {
        const PatchTarget plane{rows, cols, pitch_, map.row, map.col, map.channel};
        kernels<T>().unpack_patch(from, count, width_, plane, static_cast<T*>(target.data) + begin);
        continue;
      }
      const bool one_run = cols == pitch_ && map.row == cols * map.col;
      for (int64_t i = 0; i < (one_run ? 1 : rows); ++i)
        kernels<T>().unpack(from + i * pitch_, nullptr, count, one_run ? rows * cols : cols, width_,
                            Activation::kNone, target.at(begin + i * map.row), target.dtype,
                            map.col);
    }
  }

  // Rows of a packed tile.
  template <typename T>
  TileRows<T> packed(T* tile) const {
    return {tile, width_, kPackedLanes, nullptr};
  }

  // Where the pixels of a tile lie in planes indexed by output pixels. False where 16 lanes are not
  // neighbours there.
  struct Lanes {
    int64_t first, lanes[kPatchWidth / 16];  // of channel 0
    int32_t counts[kPatchWidth / 16];
    bool whole;  // all counts are 16

    template <typename T>
    TileRows<T> of(T* planes, int64_t channel, int64_t channel_stride) const {
      return {planes + first + channel * channel_stride, channel_stride, lanes,
              whole ? nullptr : counts};
    }
  };
  bool in_place(int64_t tile, const PixelMap& map, Lanes* at) const {
    if (map.channels_last || map.col != 1) return false;
    if (across_ > 1 && (pw_ % 16 != 0 || across_ * pw_ != pitch_)) return false;
    const Place place = this->place(tile, 0);
    at->first = map.origin + place.image * map.image + place.i * map.row + place.j;
    at->whole = true;
    for (int64_t k = 0; k < width_ / 16; ++k) {
      const int64_t i = 16 * k / pitch_, lane = 16 * k % pitch_;
      const int64_t image = across_ > 1 ? lane / pw_ : 0, j = lane - image * pw_;
      const bool exists =
          i < ph_ && place.i + i < view_.out_height && place.image + image < view_.batch;
      const int64_t count = std::min(pw_, view_.out_width - place.j) - j;
      at->counts[k] = exists ? int32_t(std::max<int64_t>(0, std::min<int64_t>(16, count))) : 0;
      at->lanes[k] = at->counts[k] > 0 ? image * map.image + i * map.row + j : 0;
      at->whole = at->whole && at->counts[k] == 16;
    }
    return true;
  }

  // The same patches over a tensor indexed by output pixels: pixel (i, j) of the view is its element
  // first + (i, j) * step of `size` (dy in the forward view, x in that of a class of dx).
  Patches of_outputs(Size2 size, Size2 first, Size2 step) const {
    Patches other(*this);
    ConvView& view = other.view_;
    view.channels = view_.out_channels;
    view.height = size.h;
    view.width = size.w;
    view.step = step;
    view.dh = {first.h};
    view.dw = {first.w};
    other.shifts_ = {first.w};
    other.rows_.clear();
    for (int64_t i = 0; i < ph_; ++i) other.rows_.push_back({i * pitch_, first.h + i * step.h});
    other.row_begin_ = {0};
    other.copy_size_ = other.channel_size_ = width_;
    other.gaps_ = across_ * pw_ < pitch_ || ph_ * pitch_ < width_;
    return other;
  }

 private:
  struct PlannedRow {
    int64_t target, row;  // row of `in`, counted from the patch's first
  };
  struct Place {
    int64_t image, i, j;
  };

  Place place(int64_t tile, int64_t image) const {
    const int64_t patch = tile % tiles_together();
    return {tile / tiles_together() * across_ + image, patch / patches_w_ * ph_,
            patch % patches_w_ * pw_};
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

  // PERF: the shape with the least work for the whole batch, counted in half cycles: an entry takes 10
  // for 128 lanes and 6 for 64 (Zen 5), a row of at most 16 pixels 6 to pack or to write back.
  static constexpr int64_t kWidestTile = int64_t(160) << 10;  // elements, 640 KB
  void choose_shape(int64_t nnz) {
    const int64_t height = view_.out_height, width = view_.out_width;
    int64_t least = -1;
    for (int64_t pitch = 16; pitch <= kPatchWidth; pitch *= 2) {
      const int64_t parts = ceil_div(width, pitch), pw = std::min(width, pitch);
      const int64_t across = parts > 1 ? 1 : std::min(view_.batch, pitch / pw);
      for (int64_t ph = 1; ph <= std::min(height, kPatchWidth / pitch); ++ph) {
        const int64_t lanes = ph * pitch;
        const int64_t tile = lanes > 64 ? 128 : lanes > 32 ? 64 : lanes > 16 ? 32 : 16;
        const int64_t entry = tile == 128 ? 10 : tile == 64 ? 6 : tile == 32 ? 5 : 4;
        const int64_t vectors = ceil_div(pw, 16) * across;
        const int64_t rows = std::min(own_rows(ph), shared_rows(ph));
        const int64_t copied = view_.channels * int64_t(shifts_.size()) * rows;
        const int64_t packed = copied * vectors;
        const int64_t written = view_.out_channels * ph * vectors;
        const int64_t tiles = ceil_div(view_.batch, across) * ceil_div(height, ph) * parts;
        // A packed tile that leaves no room in the second cache is slower to walk.
        const int64_t walked = entry * nnz * (copied * pitch > kWidestTile ? 3 : 2) / 2;
        const int64_t work = tiles * (walked + 6 * (packed + written));
        if (least >= 0 && work >= least) continue;
        least = work;
        ph_ = ph;
        pw_ = pw;
        pitch_ = pitch;
        across_ = across;
        width_ = int(tile);
      }
    }
    patches_h_ = ceil_div(height, ph_);
    patches_w_ = ceil_div(width, pw_);
  }

  void plan_rows() {
    row_begin_.assign(view_.dh.size(), 0);
    const int64_t end = own_rows(ph_) < shared_rows(ph_) ? plan_own_rows() : plan_shared_rows();
    copy_size_ = end;
    channel_size_ = std::max<int64_t>(16, end * int64_t(shifts_.size()));
    gaps_ = across_ * pw_ < pitch_ || end == 0 || shifts_.empty();
  }

  int64_t plan_own_rows() {
    int64_t end = 0;
    for (size_t ky = 0; ky < view_.dh.size(); ++ky) {
      if (view_.dh[ky] == kAbsent) continue;
      row_begin_[ky] = end;
      for (int64_t i = 0; i < ph_; ++i)
        rows_.push_back({end + i * pitch_, view_.dh[ky] + i * view_.step.h});
      end += ph_ * pitch_;
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
          row_begin_[ky] = end + (d - span.first) / view_.step.h * pitch_;
      }
      const int64_t count = (span.last - span.first) / view_.step.h + ph_;
      for (int64_t i = 0; i < count; ++i)
        rows_.push_back({end + i * pitch_, span.first + i * view_.step.h});
      end += count * pitch_;
    }
    return end;
  }

  ConvView view_;
  std::vector<int64_t> shifts_;      // column offset of each copy
  std::vector<PlannedRow> rows_;     // of one copy
  std::vector<int64_t> row_begin_;   // where a kernel row begins within a copy
  int64_t ph_ = 1, pw_ = 1;          // pixels of a patch
  int64_t pitch_ = 16, across_ = 1;  // lanes of a row, images side by side in it
  int64_t patches_h_ = 0, patches_w_ = 0;
  int width_ = 16;
  int64_t copy_size_ = 0, channel_size_ = 0;
  bool gaps_ = false;  // elements that no pixel fills
};

}  // namespace sparsekern
