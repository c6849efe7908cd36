// Instantiates the scalar body: any processor; float and double. CMakeLists.txt gives this file its
// own flags.
#include "block_kernels.h"
#include "condensed_kernels.h"
#include "kernels.h"
#include "mask_kernels.h"
#include "update_kernels.h"
#include "vec_scalar.h"

namespace sparsekern::scalar {

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

const PeakKernels kPeakKernels = {peak_flops<VecOf<float>, false>, peak_flops<VecOf<float>, true>};
const PanelKernels<float> kFloatKernels = panel_kernels<VecOf<float>>();
const PanelKernels<double> kDoubleKernels = panel_kernels<VecOf<double>>();
const MaskKernels<float> kFloatMaskKernels = mask_bodies<VecOf<float>>();
const MaskKernels<double> kDoubleMaskKernels = mask_bodies<VecOf<double>>();
const UpdateKernels kFloatUpdateKernels = update_table<VecOf<float>>();
const UpdateKernels kDoubleUpdateKernels = update_table<VecOf<double>>();
const BlockKernels<float> kFloatBlockKernels = block_kernels<VecOf<float>>();
const BlockKernels<double> kDoubleBlockKernels = block_kernels<VecOf<double>>();
const CondensedKernels<float> kFloatCondensedKernels = condensed_kernels<VecOf<float>>();
const CondensedKernels<double> kDoubleCondensedKernels = condensed_kernels<VecOf<double>>();

}  // namespace sparsekern::scalar
