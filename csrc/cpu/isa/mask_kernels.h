// The table of vector bodies that masks are made with: scores to bits, bytes to bits, bits to
// columns. Bit i of a mask is bit i % 64 of word i / 64. Torch-free.
#pragma once
#include <cstdint>

namespace sparsekern {

// How many scores of a piece are above a bracket, and how many within it.
struct BracketCounts {
  int64_t above, within;
};

// Where the scores within a bracket are listed, with their positions in the piece.
template <typename T>
struct BracketList {
  T* scores;
  uint16_t* at;
  int64_t room;
};

// The bits of one row of a mask: `cols` of them from bit `first` on.
struct RowBits {
  const uint64_t* words;
  int64_t first, cols;
};

constexpr int64_t kSpareColumns = 16;  // what `columns` may write behind the last column

template <typename T>
struct MaskKernels {
  // Bit i of `above`: scores[i] > high; of `within`: low <= scores[i] <= high; i < count, and only
  // where bit i of `among` is set (null: everywhere). The scores within are listed in their order,
  // unless there are more than room - 64 of them; count is at most 2^16.
  BracketCounts (*bracket)(const T* scores, const uint64_t* among, int64_t count, T low, T high,
                           uint64_t* above, uint64_t* within, const BracketList<T>& list);
  // Bit i of `words`: bytes[i] is not zero; unused bits are zero.
  void (*bits_of_bytes)(const uint8_t* bytes, int64_t count, uint64_t* words);
  // How many bits of a row are set.
  int64_t (*count)(const RowBits& row);
  // The columns of a row's set bits, ascending; starts[p] = how many are below column p * panel, for
  // p * panel < cols. `before` is scratch for cols / 64 + 2 elements.
  void (*columns)(const RowBits& row, int64_t panel, int32_t* before, int32_t* col,
                  int32_t* starts);
  // 64 x 64 bits in place: bit i of block[j] becomes bit j of block[i].
  void (*transpose)(uint64_t* block);
};

const MaskKernels<float>& float_mask_kernels();
const MaskKernels<double>& double_mask_kernels();

namespace scalar {
extern const MaskKernels<float> kFloatMaskKernels;
extern const MaskKernels<double> kDoubleMaskKernels;
}  // namespace scalar
namespace avx2 {
extern const MaskKernels<float> kFloatMaskKernels;
}  // namespace avx2
namespace avx512 {
extern const MaskKernels<float> kFloatMaskKernels;
}  // namespace avx512

template <typename T>
const MaskKernels<T>& mask_kernels();
template <>
inline const MaskKernels<float>& mask_kernels<float>() {
  return float_mask_kernels();
}
template <>
inline const MaskKernels<double>& mask_kernels<double>() {
  return double_mask_kernels();
}

}  // namespace sparsekern
