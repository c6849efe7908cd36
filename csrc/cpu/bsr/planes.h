// Images as zero-padded planes: what forward and backward of bsr_conv2d share.
//
// An image of x becomes planes [channel][phase][row][col]: padded with zeros, and of stride s split into
// s x s phases, phase (a, b) with the pixels (r s + a, q s + b). Output pixel (i, j) at lane i * cols + j
// then multiplies, for every tap, the element a fixed step behind the same lane of one phase. Rows have
// some lanes more than outputs; what they hold is not used. dy is padded the same way, to lanes of the
// same rows, so that dx and dvalues are fixed steps too.
#pragma once
#include <cstring>

#include "../csr/convolve.h"
#include "index.h"

namespace sparsekern {

constexpr int64_t kWaveImages = int64_t(1) << 20;  // bytes of planes that are packed at a time

struct PlaneShape {
  ConvShape conv;
  Size2 last;          // the last tap's step, in rows and columns of a phase
  int64_t rows, cols;  // of a phase
  int64_t x_channel;   // elements of a channel: all phases
  int64_t y_lead;      // of a channel of dy, elements before its first row
  int64_t y_channel;

  explicit PlaneShape(const ConvShape& shape) : conv(shape) {
    last = {(shape.kernel.h - 1) * shape.dilation.h / shape.stride.h,
            (shape.kernel.w - 1) * shape.dilation.w / shape.stride.w};
    rows = shape.out_height + last.h;
    cols = shape.out_width + last.w;
    x_channel = odd_lines(phases() * rows * cols);
    // Rows for taps that reach above the first output and below the last, 16 lanes for the last vector.
    y_lead = last.h * cols + last.w;
    y_channel = odd_lines(y_lead + rows * cols + 16);
    const int64_t largest = std::max(x_channel * shape.group_in(), y_channel * shape.out_channels);
    SPARSEKERN_CHECK(largest < int64_t(1) << 31,
                     "Expected an image of less than 2^31 elements once padded. Got ", largest,
                     ".");
  }

  int64_t phases() const { return conv.stride.h * conv.stride.w; }
  int64_t pixels() const { return conv.out_height * cols; }
  int64_t x_size() const { return conv.channels * x_channel + kSlack; }
  int64_t y_size() const { return conv.out_channels * y_channel + kSlack; }

  int64_t phase(int64_t tap) const {
    return step(tap).h % conv.stride.h * conv.stride.w + step(tap).w % conv.stride.w;
  }
  // Behind a lane, in its channel of x.
  int64_t x_offset(int64_t tap) const {
    return (phase(tap) * rows + step(tap).h / conv.stride.h) * cols + step(tap).w / conv.stride.w;
  }
  // Behind a lane of a phase of dx, in a channel of dy.
  int64_t y_offset(int64_t tap) const {
    return y_lead - step(tap).h / conv.stride.h * cols - step(tap).w / conv.stride.w;
  }

 private:
  // PERF: channels an odd number of cache lines apart, or those of a block would share a few sets of L1.
  static int64_t odd_lines(int64_t elements) {
    const int64_t lines = ceil_div(elements, 16);
    return (lines + 1 - lines % 2) * 16;
  }
  static constexpr int64_t kSlack = 2 * kTileWidth;  // zeros that the last lanes may read
  Size2 step(int64_t tap) const {
    return {tap / conv.kernel.w * conv.dilation.h, tap % conv.kernel.w * conv.dilation.w};
  }
};

// The first and one past the last index k with 0 <= k * stride + first < size, within [0, most).
struct Range {
  int64_t begin, end;
  Range(int64_t begin, int64_t end) : begin(begin), end(end) {}
  Range(int64_t first, int64_t stride, int64_t size, int64_t most) {
    begin = first >= 0 ? 0 : std::min(most, ceil_div(-first, stride));
    end = size > first ? std::min(most, (size - 1 - first) / stride + 1) : 0;
    end = std::max(begin, end);
  }
};

// One channel of x, all phases.
template <typename T>
void pack_x(const PlaneShape& s, const T* x, T* planes) {
  const ConvShape& c = s.conv;
  for (int64_t phase = 0; phase < s.phases(); ++phase, planes += s.rows * s.cols) {
    const int64_t top = phase / c.stride.w - c.padding.h, left = phase % c.stride.w - c.padding.w;
    const Range in_rows(top, c.stride.h, c.height, s.rows),
        in_cols(left, c.stride.w, c.width, s.cols);
    std::fill(planes, planes + in_rows.begin * s.cols, T(0));
    for (int64_t r = in_rows.begin; r < in_rows.end; ++r) {
      const T* source = x + (r * c.stride.h + top) * c.width + left;
      T* target = planes + r * s.cols;
      std::fill(target, target + in_cols.begin, T(0));
      if (c.stride.w == 1) {
        std::copy(source + in_cols.begin, source + in_cols.end, target + in_cols.begin);
      } else {
        for (int64_t q = in_cols.begin; q < in_cols.end; ++q) target[q] = source[q * c.stride.w];
      }
      std::fill(target + in_cols.end, target + s.cols, T(0));
    }
    std::fill(planes + in_rows.end * s.cols, planes + s.rows * s.cols, T(0));
  }
  std::fill(planes, planes + s.x_channel - s.phases() * s.rows * s.cols, T(0));
}

// One channel of dy.
template <typename T>
void pack_y(const PlaneShape& s, const T* dy, T* plane) {
  const ConvShape& c = s.conv;
  std::fill_n(plane, s.y_channel, T(0));
  for (int64_t r = 0; r < c.out_height; ++r)
    std::copy_n(dy + r * c.out_width, c.out_width, plane + s.y_lead + r * s.cols);
}

// Lanes of a tile that lie in one row: elements of a plane at offset + i * step.
struct Part {
  int64_t lane, offset, count;
};

// The parts of lanes [first, first + count) with columns of `kept`, whose rows are `row_step` apart.
inline std::vector<Part> parts_of(int64_t first, int64_t count, int64_t cols, Range kept,
                                  int64_t row_step, int64_t col_step) {
  if (kept.begin == 0 && kept.end == cols && row_step == cols && col_step == 1)
    return {{0, first, count}};
  std::vector<Part> parts;
  for (int64_t lane = 0; lane < count;) {
    const int64_t row = (first + lane) / cols, col = (first + lane) % cols;
    const int64_t last = std::min(count - lane, cols - col);
    const int64_t begin = std::max(col, kept.begin), end = std::min(col + last, kept.end);
    if (begin < end)
      parts.push_back({lane + begin - col, row * row_step + begin * col_step, end - begin});
    lane += last;
  }
  return parts;
}

// Offsets of the blocks of the plain matrix, in the order of its index, and dx's lists of blocks.
template <typename T>
class ConvBlocks {
 public:
  ConvBlocks(const Tensor& values, const Tensor& crow, const Tensor& col, int64_t columns,
             const PlaneShape& shape)
      : shape_(shape), blocks_(values, crow, col, columns) {
    const ConvShape& c = shape.conv;
    SPARSEKERN_CHECK(c.group_in() % blocks_.width == 0 && c.group_out() % blocks_.height == 0 &&
                         columns * blocks_.width == c.taps() * c.group_in() &&
                         blocks_.out_features() == c.out_channels,
                     "Expected blocks of ", blocks_.height, " x ", blocks_.width, " to divide ",
                     c.group_out(), " x ", c.group_in(),
                     " channels of a group, and all of them. Got others.");
    offsets_.resize(size_t(blocks_.count));
    for (int64_t j = 0; j < blocks_.count; ++j) {
      const Place at = place(j);
      offsets_[size_t(j)] = int32_t(shape.x_offset(at.tap) + at.channel * shape.x_channel);
    }
    plain_ = blocks_.plain;
    plain_.col = offsets_.data();
  }

  const Blocks<T>& blocks() const { return blocks_; }
  // y from planes of x; columns are offsets of elements.
  const BlockMatrix<T>& plain() const { return plain_; }
  int64_t group_rows() const { return shape_.conv.group_out() / blocks_.height; }
  int64_t group_columns() const { return shape_.conv.group_in() / blocks_.width; }

  // For every phase of dx and group: the blocks of each block of channels, by rows.
  void make_transposed() {
    const int64_t lists = shape_.phases() * shape_.conv.groups * group_columns();
    starts_.assign(size_t(lists + 1), 0);
    for_each_block([&](int64_t list, int64_t, int32_t) { ++starts_[size_t(list + 1)]; });
    for (int64_t i = 0; i < lists; ++i) starts_[size_t(i + 1)] += starts_[size_t(i)];
    std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
    offsets_t_.resize(size_t(blocks_.count));
    perm_.resize(size_t(blocks_.count));
    for_each_block([&](int64_t list, int64_t j, int32_t offset) {
      const int32_t target = next[size_t(list)]++;
      offsets_t_[size_t(target)] = offset;
      perm_[size_t(target)] = int32_t(j);
    });
  }

  // dx of one phase and group from planes of dy.
  BlockMatrix<T> transposed(int64_t phase, int64_t group) const {
    const int64_t first = (phase * shape_.conv.groups + group) * group_columns();
    return {starts_.data() + first, offsets_t_.data(), perm_.data(),   plain_.values,
            group_columns(),        blocks_.width,     blocks_.height, 1,
            blocks_.width};
  }

 private:
  struct Place {
    int64_t tap, channel;
  };
  Place place(int64_t j) const {
    const int64_t first = blocks_.plain.col[j] * blocks_.width;
    return {first / shape_.conv.group_in(), first % shape_.conv.group_in()};
  }

  template <typename Visit>
  void for_each_block(const Visit& visit) const {
    for (int64_t row = 0; row < blocks_.rows; ++row) {
      const int64_t group = row / group_rows();
      for (int64_t j = blocks_.plain.crow[row]; j < blocks_.plain.crow[row + 1]; ++j) {
        const Place at = place(j);
        const int64_t list = (shape_.phase(at.tap) * shape_.conv.groups + group) * group_columns() +
                             at.channel / blocks_.width;
        const int64_t output = row * blocks_.height;
        visit(list, j, int32_t(shape_.y_offset(at.tap) + output * shape_.y_channel));
      }
    }
  }

  const PlaneShape& shape_;
  Blocks<T> blocks_;
  BlockMatrix<T> plain_;
  std::vector<int32_t> offsets_, starts_, offsets_t_, perm_;
};

}  // namespace sparsekern
