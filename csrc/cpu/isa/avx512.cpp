// Instantiates the AVX-512 (F, BW, VL, DQ) body. CMakeLists.txt gives this file its own flags.
#include "kernels.h"
#include "vec_avx512.h"

namespace sparsekern::avx512 {

#include "pack.inl"
#include "peak.inl"
#include "sddmm.inl"
#include "spmm.inl"
#include "sum_rows.inl"

const PeakKernels kPeakKernels = {peak_flops<Vec, false>, peak_flops<Vec, true>};
const PanelKernels<float> kFloatKernels = {Pack<Vec>::pack, Pack<Vec>::unpack, Spmm<Vec>::spmm,
                                           Sddmm<Vec>::sddmm, SumRows<Vec>::sum_rows};

}  // namespace sparsekern::avx512
