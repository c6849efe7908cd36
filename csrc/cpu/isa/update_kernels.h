// The bodies of the update ops, a second table beside kernels.h. Torch-free.
#pragma once
#include <cstdint>

#include "../../common/dtype.h"
#include "../../common/inline.h"

namespace sparsekern {

constexpr int64_t kWordBits = 64;  // weights that share one word of the mask

// Consecutive weights of one tensor. States are double for double weights, else float.
struct UpdateSpan {
  void* param;
  const void* grad;
  void* first;          // momentum, or the first moment; may be null
  void* second;         // the second moment; may be null
  const uint8_t* bits;  // one bit a weight, from the lowest bit of a byte on; null: all are kept
  void* copy;           // param, rounded to copy_dtype; may be null
  int64_t count;
  Dtype dtype;       // of param
  Dtype grad_dtype;  // 16 bits also where param is float
  Dtype copy_dtype;  // 16 bits
};

// Rounded to float where weights are not double, as torch's fused optimisers round them.
struct AdamwConstants {
  double factor;         // of the gradient; negative to maximise
  double decay;          // of the weight: 1 - lr * weight_decay, or 1
  double l2;             // of the weight within the gradient
  double beta1, beta2;   // of the moments
  double grad_weight;    // 1 - beta1
  double square_weight;  // 1 - beta2
  double step_size;      // lr / (1 - beta1^t)
  double root_factor;    // 1 / sqrt(1 - beta2^t)
  double eps;
  bool clear;  // masked weights become zero, else they stay
};

struct SgdConstants {
  double factor;       // of the gradient; negative to maximise
  double l2;           // of the weight within the gradient
  double momentum;     // of what it was; used where there is a momentum
  double grad_weight;  // 1 - dampening
  double lr;
  bool nesterov;
  bool start;  // the momentum becomes the gradient
  bool clear;  // masked weights become zero, else they stay
};

// A sum that keeps what each addition rounds off, and adds it next time (Kahan).
struct CarriedSum {
  double value = 0;
  double carry = 0;

  SPARSEKERN_INLINE void add(double term) {
    const double corrected = term - carry;
    const double next = value + corrected;
    // An infinite sum stays what it is: there is nothing to carry.
    carry = next - next == 0 ? (next - value) - corrected : 0;
    value = next;
  }
};

struct UpdateKernels {
  void (*adamw)(const UpdateSpan& span, const AdamwConstants& constants);
  void (*sgd)(const UpdateSpan& span, const SgdConstants& constants);
  // The sum of squares of the kept gradients times `factor`; neither `param` nor states are used.
  double (*squares)(const UpdateSpan& span, double factor);
};

// The bodies in use for weights of this dtype (select.cpp).
const UpdateKernels& update_kernels(Dtype dtype);

namespace scalar {
extern const UpdateKernels kFloatUpdateKernels;
extern const UpdateKernels kDoubleUpdateKernels;
}  // namespace scalar
namespace avx2 {
extern const UpdateKernels kFloatUpdateKernels;
}  // namespace avx2
namespace avx512 {
extern const UpdateKernels kFloatUpdateKernels;
}  // namespace avx512

}  // namespace sparsekern
