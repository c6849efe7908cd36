// The entries of a sparse kernel in the order in which patches are multiplied: for every row and
// panel of input channels, where each entry's first lane lies in the packed patch.
//
// Offsets follow from the geometry of one call, so they are made in the call: O(nnz), against
// 64 multiply-adds an entry and tile.
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
      : kernel_(kernel), rows_(kernel.rows), nnz_(kernel.nnz), taps_(taps) {
    SPARSEKERN_CHECK(patches.panel_size() < int64_t(1) << 31,
                     "Expected a packed patch of fewer than 2^31 elements. Got ",
                     patches.panel_size(), ": use variant='dense' for a kernel of this size.");
    choose_panels(patches);
    starts_.assign(size_t((panels_ + 1) * rows_ + kPrefetchRows), 0);
    offsets_ = scratch.take<int32_t>(nnz_);
    sources_ = scratch.take<int32_t>(kernel.transposed ? nnz_ : 0);
    make_table(patches);
    if (has_absent_) {
      std::fill_n(offsets_, nnz_, 0);
      if (kernel.transposed) std::fill_n(sources_, nnz_, -1);
    }
    const bool in_place = kernel.perm == nullptr && !has_absent_;
    T* own = in_place ? nullptr : scratch.take<T>(nnz_);
    values_ = in_place ? kernel.values : own;
    std::atomic<bool> ok{true};
    constexpr int64_t kGroup = 32;  // rows of a task
    parallel_tasks(ceil_div(rows_, kGroup), 4 * nnz_, [&](int64_t task, int64_t) {
      for (int64_t r = task * kGroup; r < std::min(rows_, (task + 1) * kGroup); ++r)
        if (!walk_row(r, own)) ok = false;
    });
    SPARSEKERN_CHECK(ok, "Expected col and perm of a sparse convolution to lie inside of its ",
                     "weight. Got an index outside.");
  }

  int64_t rows() const { return rows_; }
  int64_t panels() const { return panels_; }
  int64_t row_block() const { return row_block_; }
  int64_t blocks() const { return ceil_div(rows_, row_block_); }
  int64_t nnz() const { return nnz_; }
  const T* values() const { return values_; }
  const int32_t* offsets() const { return offsets_; }
  // Of a transposed weight: which of its values an entry is, -1 where there is no entry.
  const int32_t* sources() const { return sources_; }

  CellRows cell(int64_t block, int64_t panel) const {
    const int64_t first = block * row_block_;
    const int32_t* begin = starts_.data() + panel * rows_ + first;
    const int lines = int(ceil_div(4 * nnz_, 64 * std::max<int64_t>(1, rows_ * panels_))) + 1;
    return {begin, begin + rows_, std::min(row_block_, rows_ - first), nnz_, std::min(lines, 6)};
  }

 private:
  // PERF: 32 KB of packed activations, which stay in L1, and up to 256 KB where a row would have fewer
  // than 16 entries in them: a visit of a row costs as much as 6 entries (Zen 5).
  void choose_panels(const Patches& patches) {
    const int64_t cols = kernel_.group_channels * taps_;
    const int64_t wanted = nnz_ > 0 ? ceil_div(16 * rows_ * cols / nnz_, taps_) : cols;
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
    has_absent_ = std::count(taps.begin(), taps.end(), -1) > 0;
    group_size_ = kernel_.group_channels * patches.channel_size();
  }

  // Fills the starts and offsets of one row. SAFETY: returns false, having written nothing outside,
  // when an index leads outside of the weight.
  bool walk_row(int64_t row, T* own) {
    const int64_t group = row / (rows_ / kernel_.groups);
    const int64_t list = kernel_.transposed ? row % kernel_.list_count : row;
    const int64_t first_col =
        kernel_.transposed ? group * kernel_.group_channels * taps_ : int64_t(0);
    const int64_t last_col = first_col + kernel_.group_channels * taps_;
    const int32_t base = kernel_.transposed ? 0 : int32_t(group * group_size_);
    const int32_t* col = kernel_.col;
    int64_t j = kernel_.crow[list], end = kernel_.crow[list + 1];
    if (kernel_.transposed && kernel_.groups > 1) {
      end = std::lower_bound(col + j, col + end, int32_t(last_col)) - col;
      j = std::lower_bound(col + j, col + end, int32_t(first_col)) - col;
    }
    int64_t out = j, panel = 0;
    for (; j < end; ++j) {
      const int64_t c = col[j];
      if (c < first_col || c >= last_col) return false;
      while (panel < panels_ && c >= first_col + panel * panel_cols_)
        starts_[size_t(panel++ * rows_ + row)] = int32_t(out);
      const int32_t offset = table_[size_t(c)];
      if (offset < 0) continue;
      const int64_t from = kernel_.perm != nullptr ? kernel_.perm[j] : j;
      if (from < 0 || from >= nnz_) return false;
      offsets_[out] = offset + base;
      if (kernel_.transposed) sources_[out] = int32_t(from);
      if (own != nullptr) own[out] = kernel_.values[from];
      ++out;
    }
    while (panel <= panels_) starts_[size_t(panel++ * rows_ + row)] = int32_t(out);
    return true;
  }

  const SparseKernel<T> kernel_;
  const int64_t rows_, nnz_, taps_;
  int64_t panels_ = 0, panel_cols_ = 0, row_block_ = 0, group_size_ = 0;
  bool has_absent_ = false;
  std::vector<int32_t> starts_;  // [panels + 1][rows], and what prefetching reads
  std::vector<int32_t> table_;
  int32_t* offsets_ = nullptr;
  int32_t* sources_ = nullptr;
  const T* values_ = nullptr;
};

}  // namespace sparsekern
