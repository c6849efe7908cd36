// Formula    panel = shifted copies of a patch of pixels; plane[c][pixel] = tile[c][lane].
// Mapping    channel after channel, copy after copy, row after row; lanes run along the width.
// Tile       one patch of at most 128 output pixels and the rows around it, all channels asked for.
// Arithmetic none.
// Alignment  none required; lanes outside of the plane are masked, never read.
// Contract   PatchSource, PatchTarget and PanelKernels in kernels.h.
#pragma once

// Lanes of one vector that lie inside of the plane.
struct LaneRange {
  int first, last;
};

static SPARSEKERN_INLINE LaneRange lanes_inside(int64_t col, int64_t step, int64_t width,
                                                int64_t wanted) {
  const int64_t first = col < 0 ? (-col + step - 1) / step : 0;
  const int64_t last = col < width ? (width - 1 - col) / step + 1 : 0;
  const int64_t end = last < wanted ? last : wanted;
  return {int(first < end ? first : end), int(end > 0 ? end : 0)};
}

template <typename V>
struct Patch {
  using T = typename V::Element;
  static constexpr int W = V::kWidth;

  // A vector of lanes of every row of one copy; `step` is 1, 2 or anything (0).
  template <int kStep>
  static void copy_lanes(const T* plane, const PatchSource& s, int64_t col, int wanted, T* target) {
    const int64_t step = kStep > 0 ? kStep : s.col_step;
    const LaneRange inside = lanes_inside(col, step, s.width, wanted);
    const int64_t row_count = s.row_count;
    const PackRow* rows = s.rows;
    if (kStep == 1 && inside.first == 0 && inside.last == W) {
      // PERF: most vectors have no lane outside; masked loads and stores cost twice as much.
      for (int64_t r = 0; r < row_count; ++r) {
        const int64_t source = rows[r].source;
        V::store(target + rows[r].target, source >= 0 ? V::load(plane + source + col) : V::zero());
      }
      return;
    }
    const bool any = inside.first < inside.last;
    const typename V::Lanes lanes = V::lanes(inside.first, inside.last);
    const typename V::Lanes low = V::lanes(2 * inside.first, 2 * inside.last - 1);
    const typename V::Lanes high = V::lanes(2 * inside.first - W, 2 * inside.last - 1 - W);
    for (int64_t r = 0; r < row_count; ++r) {
      typename V::Reg value = V::zero();
      if (any && rows[r].source >= 0) {
        // SAFETY: masked lanes are not read, so the pointer may lie outside of the plane.
        const T* from = plane + rows[r].source + col;
        if constexpr (kStep == 1) {
          value = V::load(from, lanes);
        } else if constexpr (kStep == 2) {
          value = V::load_even(from, low, high);
        } else {
          T gathered[W] = {};
          for (int i = inside.first; i < inside.last; ++i) gathered[i] = from[i * step];
          value = V::load(gathered);
        }
      }
      V::store_first(target + rows[r].target, value, wanted);
    }
  }

  static void pack(const T* planes, const PatchSource& s, int64_t channels, T* panel) {
    const auto body = s.col_step == 1   ? copy_lanes<1>
                      : s.col_step == 2 ? copy_lanes<2>
                                        : copy_lanes<0>;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < s.copies; ++k)
        for (int64_t l = 0; l < s.pixels; l += W)
          body(planes + c * s.plane_stride, s, s.col + s.shifts[k] + l * s.col_step,
               int(s.pixels - l < W ? s.pixels - l : W),
               panel + c * s.channel_size + k * s.copy_size + l);
    }
  }

  static void unpack(const T* tile, int64_t channels, int width, const PatchTarget& t, T* y) {
    // SAFETY: whole vectors are read; the tile is followed by at least one vector of scratch.
    // Rows of a whole plane's width are one run of pixels.
    const bool one_run = t.col_step == 1 && t.row_stride == t.pixels && t.cols == t.pixels;
    const int64_t rows = one_run ? 1 : t.rows;
    const int64_t cols = one_run ? t.rows * t.pixels : t.cols;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < rows; ++i) {
        const T* from = tile + c * width + i * t.pixels;
        T* to = y + c * t.channel_stride + i * t.row_stride;
        if (t.col_step == 1) {
          int64_t j = 0;
          for (; j + W <= cols; j += W) V::store(to + j, V::load(from + j));
          if (j < cols) V::store_first(to + j, V::load(from + j), int(cols - j));
        } else if (t.col_step == 2) {
          for (int64_t j = 0; j < cols; j += W)
            V::store_even(to + 2 * j, V::load(from + j), int(cols - j < W ? cols - j : W));
        } else {
          for (int64_t j = 0; j < cols; ++j) to[j * t.col_step] = from[j];
        }
      }
    }
  }
};
