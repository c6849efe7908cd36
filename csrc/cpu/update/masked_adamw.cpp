// Formula    AdamW on the kept weights of many tensors in one pass.
// Mapping    tasks of about the same size; no element is read by two.
// Arithmetic constants in double, as torch's fused optimiser; elements as ../isa/masked_adamw.inl.
// Contract   sparsekern/ops/update/masked_adamw.py.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

#include "tensors.h"

namespace sparsekern {
namespace {

void update_masked_adamw_cpu(TensorList params, TensorList grads, TensorList exp_avgs,
                             TensorList exp_avg_sqs, TensorList steps, TensorList bits,
                             TensorList copies, std::optional<Tensor> grad_factor,
                             std::optional<Tensor> found_inf, std::optional<Tensor> rate, double lr,
                             double beta1, double beta2, double eps, double weight_decay,
                             bool decoupled, bool maximize, bool zero_masked) {
  const size_t length = params.size();
  check_length(grads, "grads", length);
  check_length(exp_avgs, "exp_avgs", length);
  check_length(exp_avg_sqs, "exp_avg_sqs", length);
  check_length(steps, "steps", length);
  check_length(bits, "bits", length);
  check_copies(copies, length);
  const double factor = scalar_or(grad_factor, "grad_factor", 1);
  const bool overflow = scalar_or(found_inf, "found_inf", 0) != 0;
  lr = scalar_or(rate, "rate", lr);

  std::vector<UpdateSpan> spans(length);
  std::vector<AdamwConstants> constants(length);
  for (size_t i = 0; i < length; ++i) {
    spans[i] = param_span(params[i], grads[i], bits[i]);
    spans[i].first = state_pointer(exp_avgs[i], "exp_avgs", spans[i]);
    spans[i].second = state_pointer(exp_avg_sqs[i], "exp_avg_sqs", spans[i]);
    set_copy(copies, i, spans[i]);
    const double step = scalar_of(steps[i], "steps");
    AdamwConstants& c = constants[i];
    c.factor = maximize ? -factor : factor;
    c.decay = decoupled ? 1 - lr * weight_decay : 1;
    c.l2 = decoupled ? 0 : weight_decay;
    c.beta1 = beta1;
    c.beta2 = beta2;
    c.grad_weight = 1 - beta1;
    c.square_weight = 1 - beta2;
    c.step_size = lr / (1 - std::pow(beta1, step));
    c.root_factor = 1 / std::sqrt(1 - std::pow(beta2, step));
    c.eps = eps;
    c.clear = zero_masked;
  }
  if (overflow) return;
  Tasks(spans).run([&](const Piece& piece, int64_t) {
    const UpdateSpan& whole = spans[piece.tensor];
    update_kernels(whole.dtype).adamw(cut(whole, piece), constants[piece.tensor]);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("update_masked_adamw_", TORCH_BOX(&update_masked_adamw_cpu));
}

}  // namespace sparsekern
