// The entries of a sparse kernel in the order in which patches are multiplied: block of rows after
// block, panel of input channels after panel, row after row; of each entry its value and where its
// first lane lies in the packed patch.
//
// Offsets follow from the geometry of one call, so they are made in the call: O(nnz), against
// 128 multiply-adds an entry and tile. PERF: read in the order of the index, the pieces of one panel
// lie a row apart; for 256 channels at density 0.2 that is a third more cache lines of 1 MB a tile.
#pragma once
#include <vector>

#include "../../common/check.h"
#include "../parallel.h"
#include "../scratch.h"
#include "patches.h"

namespace sparsekern {

// A weight [rows][channels of a group * taps] in compressed rows, or its transpose, in which a row
// is an input channel and a column an output channel and tap.
template <typename T>
struct SparseKernel {
  const int32_t* crow;
  const int32_t* col;
  const int32_t* perm;  // values are read through it where it is not null
  const T* values;
  int64_t list_count, nnz;  // rows stored, entries
  int64_t rows, groups;     // rows multiplied: of a transposed weight, all channels of all groups
  int64_t group_channels;   // channels that one row sees
  bool transposed;
};

template <typename T>
class Walk {
 public:
  Walk(const SparseKernel<T>& kernel, const Patches& patches, int64_t taps, ScratchFrame& scratch)
      : kernel_(kernel), rows_(kernel.rows), taps_(taps) {
    SPARSEKERN_CHECK(patches.panel_size() < int64_t(1) << 31,
                     "Expected a packed patch of fewer than 2^31 elements. Got ",
                     patches.panel_size(), ": use variant='dense' for a kernel of this size.");
    choose_panels(patches);
    make_table(patches);
    starts_.assign(size_t(blocks() * panels_ * row_block_ + 1 + kPrefetchRows), 0);
    std::atomic<bool> ok{true};
    constexpr int64_t kGroup = 32;  // rows of a task
    const auto all_rows = [&](auto&& body) {
      parallel_tasks(ceil_div(rows_, kGroup), 4 * kernel.nnz, [&](int64_t task, int64_t) {
        for (int64_t r = task * kGroup; r < std::min(rows_, (task + 1) * kGroup); ++r)
          if (!body(r)) ok = false;
      });
      SPARSEKERN_CHECK(ok, "Expected col and perm of a sparse convolution to lie inside of its ",
                       "weight. Got an index outside.");
    };
    all_rows([&](int64_t row) {
      return each_entry(row, [&](int64_t at, int64_t, int64_t) { ++starts_[size_t(at)]; });
    });
    for (int32_t& start : starts_) {
      const int32_t count = start;
      start = int32_t(nnz_);
      nnz_ += count;
    }
    offsets_ = scratch.take<int32_t>(nnz_);
    sources_ = scratch.take<int32_t>(kernel.transposed ? nnz_ : 0);
    values_ = scratch.take<T>(nnz_);
    all_rows([&](int64_t row) { return fill(row); });
  }

  int64_t rows() const { return rows_; }
  int64_t panels() const { return panels_; }
  int64_t row_block() const { return row_block_; }
  int64_t blocks() const { return ceil_div(rows_, row_block_); }
  int64_t nnz() const { return nnz_; }  // entries that have a part in this view
  const T* values() const { return values_; }
  const int32_t* offsets() const { return offsets_; }
  // Of a transposed weight: which of its values an entry is.
  const int32_t* sources() const { return sources_; }

  CellRows cell(int64_t block, int64_t panel) const {
    const int32_t* begin = starts_.data() + (block * panels_ + panel) * row_block_;
    const int lines = int(ceil_div(4 * nnz_, 64 * std::max<int64_t>(1, rows_ * panels_))) + 1;
    return {begin, begin + 1, std::min(row_block_, rows_ - block * row_block_), nnz_,
            std::min(lines, 6)};
  }

 private:
  // PERF: 32 KB of packed activations, which stay in L1, and up to 256 KB where a row would have fewer
  // than 16 entries in them: a visit of a row costs as much as 6 entries (Zen 5).
  void choose_panels(const Patches& patches) {
    const int64_t cols = kernel_.group_channels * taps_;
    const int64_t nnz = kernel_.nnz;
    const int64_t wanted = nnz > 0 ? ceil_div(16 * rows_ * cols / nnz, taps_) : cols;
    const int64_t least = std::max<int64_t>(1, 8192 / patches.channel_size());
    const int64_t most = std::max<int64_t>(1, 65536 / patches.channel_size());
    const int64_t channels = std::min(std::max(wanted, least), most);
    panels_ = ceil_div(kernel_.group_channels, channels);
    panel_cols_ = ceil_div(kernel_.group_channels, panels_) * taps_;
    row_block_ = rows_ >= 1024 ? 256 : rows_ > 128 ? round_up(ceil_div(rows_, 4), 16) : 32;
  }

  // Offset of every (channel, tap), relative to the row's group for a weight that is not transposed.
  void make_table(const Patches& patches) {
    const std::vector<int32_t> taps = patches.tap_offsets();
    const int64_t channels = kernel_.group_channels * (kernel_.transposed ? kernel_.groups : 1);
    table_.reserve(size_t(channels * taps_));
    for (int64_t c = 0; c < channels; ++c)
      for (int32_t tap : taps)
        table_.push_back(tap < 0 ? -1 : int32_t(c * patches.channel_size()) + tap);
    group_size_ = kernel_.group_channels * patches.channel_size();
  }

  // Calls entry(place in starts, column, position in the index) for the entries of a row that have a
  // part in this view. SAFETY: returns false when a column leads outside of the weight.
  template <typename Entry>
  bool each_entry(int64_t row, const Entry& entry) const {
    const int64_t group = row / (rows_ / kernel_.groups);
    const int64_t list = kernel_.transposed ? row % kernel_.list_count : row;
    const int64_t first_col =
        kernel_.transposed ? group * kernel_.group_channels * taps_ : int64_t(0);
    const int64_t last_col = first_col + kernel_.group_channels * taps_;
    const int32_t* col = kernel_.col;
    int64_t j = kernel_.crow[list], end = kernel_.crow[list + 1];
    if (kernel_.transposed && kernel_.groups > 1) {
      end = std::lower_bound(col + j, col + end, int32_t(last_col)) - col;
      j = std::lower_bound(col + j, col + end, int32_t(first_col)) - col;
    }
    int64_t place = row / row_block_ * panels_ * row_block_ + row % row_block_;
    int64_t next_panel = first_col + panel_cols_;
    for (; j < end; ++j) {
      const int64_t c = col[j];
      if (c < first_col || c >= last_col) return false;
      for (; c >= next_panel; next_panel += panel_cols_) place += row_block_;
      if (table_[size_t(c)] >= 0) entry(place, c, j);
    }
    return true;
  }

  // Writes the entries of one row. SAFETY: returns false when `perm` leads outside of the values.
  bool fill(int64_t row) {
    const int64_t group = row / (rows_ / kernel_.groups);
    const int32_t base = kernel_.transposed ? 0 : int32_t(group * group_size_);
    int64_t last_place = -1, out = 0;
    bool ok = true;
    each_entry(row, [&](int64_t place, int64_t c, int64_t j) {
      if (place != last_place) out = starts_[size_t(place)];
      last_place = place;
      int64_t from = kernel_.perm != nullptr ? kernel_.perm[j] : j;
      if (from < 0 || from >= kernel_.nnz) {
        ok = false;
        from = 0;
      }
      offsets_[out] = table_[size_t(c)] + base;
      values_[out] = kernel_.values[from];
      if (kernel_.transposed) sources_[out] = int32_t(from);
      ++out;
    });
    return ok;
  }

  const SparseKernel<T> kernel_;
  const int64_t rows_, taps_;
  int64_t nnz_ = 0, panels_ = 0, panel_cols_ = 0, row_block_ = 0, group_size_ = 0;
  std::vector<int32_t> starts_;  // [blocks][panels][row_block], the end, and what prefetching reads
  std::vector<int32_t> table_;
  int32_t* offsets_ = nullptr;
  int32_t* sources_ = nullptr;
  T* values_ = nullptr;
};

}  // namespace sparsekern
