// Instantiates the AVX2 + FMA + F16C body. CMakeLists.txt gives this file its own flags.
#include "block_kernels.h"
#include "condensed_kernels.h"
#include "kernels.h"
#include "mask_kernels.h"
#include "update_kernels.h"
#include "vec_avx2.h"

namespace sparsekern::avx2 {

#include "activation.inl"
#include "bits.inl"
#include "bsr_sddmm.inl"
#include "bsr_spmm.inl"
#include "bsr_table.inl"
#include "condensed.inl"
#include "convolve.inl"
#include "dot.inl"
#include "masked_adamw.inl"
#include "masked_norm.inl"
#include "masked_sgd.inl"
#include "pack.inl"
#include "patch.inl"
#include "peak.inl"
#include "sddmm.inl"
#include "spmm.inl"
#include "sum_rows.inl"
#include "table.inl"
#include "update_table.inl"

const PeakKernels kPeakKernels = {peak_flops<Vec, false>, peak_flops<Vec, true>};
const PanelKernels<float> kFloatKernels = panel_kernels<Vec>();
const MaskKernels<float> kFloatMaskKernels = mask_bodies<Vec>();
const UpdateKernels kFloatUpdateKernels = update_table<Vec>();
const BlockKernels<float> kFloatBlockKernels = block_kernels<Vec>();
const CondensedKernels<float> kFloatCondensedKernels = condensed_kernels<Vec>();

}  // namespace sparsekern::avx2
