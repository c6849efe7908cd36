// Instantiates the scalar body: any processor; float and double. CMakeLists.txt gives this file its
// own flags.
#include "kernels.h"
#include "vec_scalar.h"

namespace sparsekern::scalar {

#include "pack.inl"
#include "peak.inl"
#include "sddmm.inl"
#include "spmm.inl"
#include "sum_rows.inl"

template <typename T>
constexpr PanelKernels<T> kernels_of() {
  using V = VecOf<T>;
  return {Pack<V>::pack, Pack<V>::unpack, Spmm<V>::spmm, Sddmm<V>::sddmm, SumRows<V>::sum_rows};
}

const PeakKernels kPeakKernels = {peak_flops<VecOf<float>, false>, peak_flops<VecOf<float>, true>};
const PanelKernels<float> kFloatKernels = kernels_of<float>();
const PanelKernels<double> kDoubleKernels = kernels_of<double>();

}  // namespace sparsekern::scalar
