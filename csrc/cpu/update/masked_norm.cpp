// Formula    the L2 norm of the kept gradients of many tensors, times a factor.
// Mapping    one partial sum a task; they are added in order, so threads do not change the bits.
// Arithmetic partial sums in double; elements as ../isa/masked_norm.inl.
// Contract   sparsekern/ops/update/masked_norm.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "tensors.h"

namespace sparsekern {
namespace {

Tensor update_masked_norm_cpu(TensorList grads, TensorList bits,
                              std::optional<Tensor> grad_factor) {
  const double factor = scalar_or(grad_factor, "grad_factor", 1);
  check_length(bits, "bits", grads.size());
  std::vector<UpdateSpan> spans(grads.size());
  bool is_double = false;
  for (size_t i = 0; i < grads.size(); ++i) {
    spans[i] = gradient_span(grads[i], bits[i]);
    is_double = is_double || spans[i].dtype == Dtype::kDouble;
  }
  const Tasks tasks(spans);
  std::vector<double> sums(size_t(tasks.count()), 0.0);
  tasks.run([&](const Piece& piece, int64_t task) {
    const UpdateSpan& whole = spans[piece.tensor];
    sums[task] += update_kernels(whole.dtype).squares(cut(whole, piece), factor);
  });
  CarriedSum total;
  for (const double sum : sums) total.add(sum);

  Tensor norm = torch::stable::empty({}, is_double ? ScalarType::Double : ScalarType::Float);
  if (is_double) {
    *static_cast<double*>(norm.mutable_data_ptr()) = std::sqrt(total.value);
  } else {
    *static_cast<float*>(norm.mutable_data_ptr()) = float(std::sqrt(total.value));
  }
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("update_masked_norm", TORCH_BOX(&update_masked_norm_cpu));
}

}  // namespace sparsekern
