// Chooses the vector bodies once, when the library is loaded: the widest that this processor and
// this build have, or the one SPARSEKERN_ISA names (checked by sparsekern/_extension.py).
#include <cstdlib>
#include <cstring>

#include "../../common/debug.h"
#include "block_kernels.h"
#include "condensed_kernels.h"
#include "kernels.h"
#include "mask_kernels.h"
#include "update_kernels.h"

namespace sparsekern {
namespace {

enum class Isa { kScalar, kAvx2, kAvx512 };

Isa widest() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::kAvx2;
#endif
  return Isa::kScalar;
}

Isa choose() {
  const Isa best = widest();
  const char* wanted = std::getenv("SPARSEKERN_ISA");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "scalar") == 0) return Isa::kScalar;
  if (std::strcmp(wanted, "avx2") == 0 && best >= Isa::kAvx2) return Isa::kAvx2;
  return best;
}

const Isa kIsa = choose();

}  // namespace

const PanelKernels<float>& float_kernels() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kFloatKernels;
  if (kIsa == Isa::kAvx2) return avx2::kFloatKernels;
#endif
  return scalar::kFloatKernels;
}

const PanelKernels<double>& double_kernels() { return scalar::kDoubleKernels; }

const MaskKernels<float>& float_mask_kernels() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kFloatMaskKernels;
  if (kIsa == Isa::kAvx2) return avx2::kFloatMaskKernels;
#endif
  return scalar::kFloatMaskKernels;
}

const MaskKernels<double>& double_mask_kernels() { return scalar::kDoubleMaskKernels; }

const UpdateKernels& update_kernels(Dtype dtype) {
  if (dtype == Dtype::kDouble) return scalar::kDoubleUpdateKernels;
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kFloatUpdateKernels;
  if (kIsa == Isa::kAvx2) return avx2::kFloatUpdateKernels;
#endif
  return scalar::kFloatUpdateKernels;
}

const BlockKernels<float>& float_block_kernels() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kFloatBlockKernels;
  if (kIsa == Isa::kAvx2) return avx2::kFloatBlockKernels;
#endif
  return scalar::kFloatBlockKernels;
}

const BlockKernels<double>& double_block_kernels() { return scalar::kDoubleBlockKernels; }

const CondensedKernels<float>& float_condensed_kernels() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kFloatCondensedKernels;
  if (kIsa == Isa::kAvx2) return avx2::kFloatCondensedKernels;
#endif
  return scalar::kFloatCondensedKernels;
}

const CondensedKernels<double>& double_condensed_kernels() {
  return scalar::kDoubleCondensedKernels;
}

const PeakKernels& peak_kernels() {
#if defined(SPARSEKERN_HAVE_X86_BODIES)
  if (kIsa == Isa::kAvx512) return avx512::kPeakKernels;
  if (kIsa == Isa::kAvx2) return avx2::kPeakKernels;
#endif
  return scalar::kPeakKernels;
}

const char* active_isa() {
  return kIsa == Isa::kAvx512 ? "avx512" : kIsa == Isa::kAvx2 ? "avx2" : "scalar";
}

}  // namespace sparsekern

// Called through ctypes: sparsekern/_extension.py, bench/roofline.py.
#define SPARSEKERN_EXPORT extern "C" __attribute__((visibility("default")))

SPARSEKERN_EXPORT const char* sparsekern_active_isa() { return sparsekern::active_isa(); }

SPARSEKERN_EXPORT int sparsekern_is_debugging() { return sparsekern::is_debugging() ? 1 : 0; }

SPARSEKERN_EXPORT int64_t sparsekern_peak(int from_memory, int64_t rounds, float* result) {
  const sparsekern::PeakKernels& peak = sparsekern::peak_kernels();
  return from_memory != 0 ? peak.memory(rounds, result) : peak.registers(rounds, result);
}
