// out = sparse kernel * in, over patches of pixels: what forward and dx of csr_conv2d share.
#pragma once
#include "walk.h"

namespace sparsekern {

// Where the sums of a block of rows of one tile go: from panel to panel they wait in scratch, the
// last panel writes the tensor itself where the tile's lanes are neighbours in it.
template <typename T>
class TileOutput {
 public:
  TileOutput(const Patches& patches, const PixelTarget& target, int64_t tile, int64_t first_row,
             T* scratch)
      : patches_(patches), target_(target), tile_(tile), first_row_(first_row) {
    packed_ = patches.packed(scratch);
    in_place_ = patches.in_place(tile, target.map, &lanes_);
    if (in_place_) placed_ = lanes_.of(static_cast<T*>(target.data), first_row, target.map.channel);
  }
  TileOutput(const TileOutput&) = delete;
  TileOutput& operator=(const TileOutput&) = delete;

  TileRows<const T> before(int64_t panel) const {
    return {panel > 0 ? packed_.data : nullptr, packed_.stride, packed_.lanes, nullptr};
  }
  const TileRows<T>& after(int64_t panel, int64_t panels) const {
    return in_place_ && panel == panels - 1 ? placed_ : packed_;
  }
  void finish(int64_t rows) const {
    if (!in_place_) patches_.unpack(packed_.data, tile_, first_row_, rows, target_);
  }

 private:
  const Patches& patches_;
  const PixelTarget& target_;
  const int64_t tile_, first_row_;
  Patches::Lanes lanes_{};
  TileRows<T> packed_, placed_{};
  bool in_place_;
};

// The planes that a thread reads, tile after tile: the tensor's own, or bands of a channels_last tensor
// turned into the thread's scratch.
template <typename T>
class Bands {
 public:
  Bands(const Images<T>& images, const Patches& patches) : images_(images), patches_(patches) {
    if (images.in_place()) return;
    bool begins = false;
    for (int64_t tile = 0; tile < patches.tiles_together(); ++tile)
      size_ = std::max(size_, images.size_of(patches.band(tile, &begins), width()));
    size_ = round_up(size_, 16);
  }

  int64_t size() const { return size_; }  // elements of a thread's scratch

  // To be called for consecutive tiles; `anew` at the first of a run.
  Planes<T> bring_in(int64_t tile, bool anew, T* scratch) const {
    bool begins = false;
    const Band band = patches_.band(tile, &begins);
    if (images_.in_place()) {
      if (begins || anew) images_.sweep(band, width());
      return images_.whole({patches_.view().height, width()}, nullptr);
    }
    if (begins || anew) images_.turn(band, width(), scratch);
    return images_.turned(band, width(), scratch);
  }

 private:
  int64_t width() const { return patches_.view().width; }

  const Images<T>& images_;
  const Patches& patches_;
  int64_t size_ = 0;
};

// Consecutive tiles that one thread takes: whole images where there are enough, so that their rows
// come from its own cache.
inline int64_t tiles_of_a_run(const Patches& patches, int64_t threads) {
  const int64_t together = patches.tiles_together();
  const int64_t fair = std::max<int64_t>(1, patches.tiles() / (8 * threads));
  return fair < together ? fair : std::min<int64_t>(8, fair / together) * together;
}

// Packed tiles: one private to each thread where there are many, else one for each tile, which the
// threads fill together. The bits do not depend on which.
template <typename T>
void convolve(const ConvView& view, const SparseKernel<T>& kernel, const Images<T>& in,
              const T* bias, Activation activation, const PixelTarget& target) {
  ScratchFrame scratch;
  const Patches patches(view, kernel.nnz);
  const Walk<T> walk(kernel, patches, view.taps(), scratch);
  const int64_t tiles = patches.tiles(), threads = thread_count();
  const bool is_private = tiles >= 4 * threads || threads == 1;
  const int64_t panel_size = round_up(patches.panel_size(), 16);
  T* panels = scratch.take<T>((is_private ? threads : tiles) * panel_size);
  const int64_t output_size = round_up(patches.output_size(walk.row_block()), 16);
  T* outputs = scratch.take<T>(threads * output_size);

  const auto multiply = [&](int64_t tile, int64_t block, const T* panel, int64_t slot) {
    const TileOutput<T> output(patches, target, tile, block * walk.row_block(),
                               outputs + slot * output_size);
    for (int64_t p = 0; p < walk.panels(); ++p)
      kernels<T>().convolve(
          walk.cell(block, p), walk.values(), walk.offsets(), panel, patches.width(),
          output.before(p), bias != nullptr ? bias + block * walk.row_block() : nullptr,
          p == walk.panels() - 1 ? activation : Activation::kNone, output.after(p, walk.panels()));
    output.finish(std::min(walk.row_block(), walk.rows() - block * walk.row_block()));
  };
  const int64_t work = tiles * patches.width() * (walk.nnz() + view.channels + walk.rows());
  if (is_private) {
    const int64_t run = tiles_of_a_run(patches, threads);
    const Bands<T> bands(in, patches);
    T* turned = scratch.take<T>(threads * bands.size());
    parallel_tasks(ceil_div(tiles, run), work, [&](int64_t index, int64_t slot) {
      T* panel = panels + slot * panel_size;
      for (int64_t tile = index * run; tile < std::min(tiles, (index + 1) * run); ++tile) {
        const Planes<T> planes =
            bands.bring_in(tile, tile == index * run, turned + slot * bands.size());
        patches.pack(planes, tile, 0, view.channels, panel);
        for (int64_t block = 0; block < walk.blocks(); ++block) multiply(tile, block, panel, slot);
      }
    });
    return;
  }
  Tensor copy;
  const Planes<T> planes = in.whole({view.height, view.width}, &copy);
  constexpr int64_t kStrip = 32;  // channels packed by one task
  const int64_t strips = ceil_div(view.channels, kStrip);
  parallel_tasks(tiles * strips, work, [&](int64_t task, int64_t) {
    const int64_t tile = task / strips, first = task % strips * kStrip;
    patches.pack(planes, tile, first, std::min(kStrip, view.channels - first),
                 panels + tile * panel_size);
  });
  parallel_tasks(tiles * walk.blocks(), work, [&](int64_t task, int64_t slot) {
    const int64_t tile = task % tiles;
    multiply(tile, task / tiles, panels + tile * panel_size, slot);
  });
}

// The arguments of a convolution, checked.
struct ConvShape {
  int64_t batch, channels, height, width, out_channels, out_height, out_width;
  Size2 kernel, stride, padding, dilation;
  int64_t groups;

  ConvShape(const Tensor& x, int64_t out_channels, const std::vector<int64_t>& kernel_size,
            const std::vector<int64_t>& strides, const std::vector<int64_t>& paddings,
            const std::vector<int64_t>& dilations, int64_t groups)
      : out_channels(out_channels), groups(groups) {
    SPARSEKERN_CHECK(x.dim() == 4, "Expected x to have 4 dimensions. Got ", x.dim(), ".");
    batch = x.size(0);
    channels = x.size(1);
    height = x.size(2);
    width = x.size(3);
    kernel = pair(kernel_size, "kernel_size", 1);
    stride = pair(strides, "stride", 1);
    padding = pair(paddings, "padding", 0);
    dilation = pair(dilations, "dilation", 1);
    SPARSEKERN_CHECK(channels >= 1, "Expected x to have channels. Got none.");
    SPARSEKERN_CHECK(groups >= 1 && channels % groups == 0 && out_channels % groups == 0,
                     "Expected groups to divide ", channels, " and ", out_channels,
                     " channels. Got ", groups, ".");
    out_height = output(height, kernel.h, stride.h, padding.h, dilation.h);
    out_width = output(width, kernel.w, stride.w, padding.w, dilation.w);
    SPARSEKERN_CHECK(out_height >= 1 && out_width >= 1,
                     "Expected x to be as large as the kernel. Got ", height, " x ", width, ".");
  }

  int64_t taps() const { return kernel.h * kernel.w; }
  int64_t group_in() const { return channels / groups; }
  int64_t group_out() const { return out_channels / groups; }

  ConvView forward() const {
    ConvView view{batch,     channels, height, width, out_channels, out_height,
                  out_width, {1, 1},   {},     {},    groups};
    view.step = stride;
    for (int64_t k = 0; k < kernel.h; ++k) view.dh.push_back(k * dilation.h - padding.h);
    for (int64_t k = 0; k < kernel.w; ++k) view.dw.push_back(k * dilation.w - padding.w);
    return view.flattened();
  }

 private:
  static Size2 pair(const std::vector<int64_t>& sizes, const char* name, int64_t least) {
    SPARSEKERN_CHECK(sizes.size() == 2 && sizes[0] >= least && sizes[1] >= least, "Expected ", name,
                     " to be two numbers of at least ", least, ". Got others.");
    return {sizes[0], sizes[1]};
  }
  static int64_t output(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                        int64_t dilation) {
    const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
  }
};

}  // namespace sparsekern
