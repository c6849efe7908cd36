// The block bodies of one instruction set, gathered in the table that block_kernels.h describes.
#pragma once

template <typename V>
constexpr BlockKernels<typename V::Element> block_kernels() {
  BlockKernels<typename V::Element> table{};
  table.lanes = V::kWidth;
  table.spmm = BsrSpmm<V>::spmm;
  table.pack_vectors = BsrSddmm<V>::pack_vectors;
  table.sddmm = BsrSddmm<V>::sddmm;
  table.sddmm_vectors = BsrSddmm<V>::sddmm_vectors;
  return table;
}
