// The rows of a mask as bits in scratch memory: what an index is built from.
#pragma once
#include "../mask/words.h"
#include "batch.h"

namespace sparsekern {

constexpr int64_t kRowGroup = 64;  // rows of a task

// `mask` is bool, or uint8 with the bits of all elements in row-major order.
class MaskRows {
 public:
  MaskRows(const Tensor& mask, int64_t rows, int64_t cols, ScratchFrame& scratch)
      : rows_(rows),
        cols_(cols),
        stride_(cols),
        words_(scratch.take<uint64_t>(ceil_div(rows * cols, 64))) {
    const int64_t numel = rows * cols;
    const Tensor contiguous = torch::stable::contiguous(mask);
    const uint8_t* data = static_cast<const uint8_t*>(contiguous.data_ptr());
    if (mask.scalar_type() == ScalarType::Bool) {
      SPARSEKERN_CHECK(mask.numel() == numel, "Expected mask to have ", numel, " elements. Got ",
                       mask.numel(), ".");
      words_of_bytes(data, numel, words_);
      return;
    }
    SPARSEKERN_CHECK(mask.scalar_type() == ScalarType::Byte && mask.numel() == ceil_div(numel, 8),
                     "Expected mask to be bool, or uint8 with ", ceil_div(numel, 8),
                     " elements. Got ", mask.numel(), " elements.");
    words_of_bits(data, numel, words_);
  }

  // The same bits by columns.
  MaskRows transposed(ScratchFrame& scratch) const {
    const int64_t blocks = ceil_div(rows_, 64);
    MaskRows result(cols_, rows_, 64 * blocks, scratch.take<uint64_t>(cols_ * blocks));
    parallel_tasks(ceil_div(cols_, 64), rows_ * cols_, [&](int64_t b, int64_t) {
      const int64_t count = std::min<int64_t>(64, cols_ - 64 * b);
      for (int64_t a = 0; a < blocks; ++a) {
        uint64_t block[64] = {};
        const int64_t last = std::min<int64_t>(64, rows_ - 64 * a);
        for (int64_t i = 0; i < last; ++i) block[i] = bits((64 * a + i) * stride_ + 64 * b, count);
        float_mask_kernels().transpose(block);
        for (int64_t j = 0; j < count; ++j) result.words_[(64 * b + j) * blocks + a] = block[j];
      }
    });
    return result;
  }

  RowBits row(int64_t r) const { return {words_, r * stride_, cols_}; }
  int64_t groups() const { return ceil_div(rows_, kRowGroup); }

  // Room for the columns of one row, and for what `columns` needs besides.
  int64_t col_room() const { return cols_ + kSpareColumns; }
  int64_t word_room() const { return cols_ / 64 + 2; }

  // crow[r] = how many are kept above row r; returns crow[rows].
  int64_t count(int32_t* crow) const {
    crow[0] = 0;
    for_each_row(
        [&](int64_t r, int64_t) { crow[r + 1] = int32_t(float_mask_kernels().count(row(r))); });
    int64_t total = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      total += crow[r + 1];
      crow[r + 1] = int32_t(total);
    }
    return total;
  }

  // Calls visit(row, slot), rising for each slot.
  template <typename Visit>
  void for_each_row(const Visit& visit) const {
    parallel_tasks(groups(), rows_ * cols_, [&](int64_t group, int64_t slot) {
      const int64_t last = std::min(rows_, (group + 1) * kRowGroup);
      for (int64_t r = group * kRowGroup; r < last; ++r) visit(r, slot);
    });
  }

 private:
  MaskRows(int64_t rows, int64_t cols, int64_t stride, uint64_t* words)
      : rows_(rows), cols_(cols), stride_(stride), words_(words) {}

  // `count` bits from bit `first` on, which all belong to one row.
  uint64_t bits(int64_t first, int64_t count) const {
    const int64_t word = first / 64, shift = first % 64;
    uint64_t value = words_[word] >> shift;
    if (shift + count > 64) value |= words_[word + 1] << (64 - shift);
    return count < 64 ? value & ((uint64_t(1) << count) - 1) : value;
  }

  int64_t rows_, cols_;
  int64_t stride_;  // bits from row to row
  uint64_t* words_;
};

}  // namespace sparsekern
