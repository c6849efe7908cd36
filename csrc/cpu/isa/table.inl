// The bodies of one instruction set, gathered in the tables that kernels.h and mask_kernels.h
// describe.
#pragma once

template <typename V>
constexpr PanelKernels<typename V::Element> panel_kernels() {
  PanelKernels<typename V::Element> table{};
  table.pack = Pack<V>::pack;
  table.pack_gated = Pack<V>::pack_gated;
  table.unpack = Pack<V>::unpack;
  table.spmm = Spmm<V>::spmm;
  table.dot = Dot<V>::dot;
  table.sddmm = Sddmm<V>::sddmm;
  table.convolve = Convolve<V>::convolve;
  table.convolve_dvalues = Convolve<V>::dvalues;
  table.convolve_both = Convolve<V>::both;
  table.pack_patch = Patch<V>::pack;
  table.unpack_patch = Patch<V>::unpack;
  table.sum_rows = SumRows<V>::sum_rows;
  return table;
}

template <typename V>
constexpr MaskKernels<typename V::Element> mask_bodies() {
  MaskKernels<typename V::Element> table{};
  table.bracket = Bits<V>::bracket;
  table.bits_of_bytes = Bits<V>::bits_of_bytes;
  table.count = Bits<V>::count;
  table.columns = Bits<V>::columns;
  table.transpose = Bits<V>::transpose;
  return table;
}
