// Formula    SGD with momentum on the kept weights of many tensors in one pass.
// Mapping    tasks of about the same size; no element is read by two.
// Arithmetic constants in double, as torch's fused optimiser; elements as ../isa/masked_sgd.inl.
// Contract   sparsekern/ops/update/masked_sgd.py.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "tensors.h"

namespace sparsekern {
namespace {

void update_masked_sgd_cpu(TensorList params, TensorList grads, TensorList momentum_buffers,
                           std::vector<bool> starts, TensorList bits, TensorList copies,
                           std::optional<Tensor> grad_factor, std::optional<Tensor> found_inf,
                           std::optional<Tensor> rate, double lr, double momentum, double dampening,
                           double weight_decay, bool nesterov, bool maximize, bool zero_masked) {
  const size_t length = params.size();
  const size_t buffers = momentum == 0 ? 0 : length;
  check_length(grads, "grads", length);
  check_length(momentum_buffers, "momentum_buffers", buffers);
  check_length(bits, "bits", length);
  SPARSEKERN_CHECK(starts.size() == buffers, "Expected starts to have ", int64_t(buffers),
                   " entries. Got ", int64_t(starts.size()), ".");
  check_copies(copies, length);
  const double factor = scalar_or(grad_factor, "grad_factor", 1);
  const bool overflow = scalar_or(found_inf, "found_inf", 0) != 0;

  std::vector<UpdateSpan> spans(length);
  for (size_t i = 0; i < length; ++i) {
    spans[i] = param_span(params[i], grads[i], bits[i]);
    if (buffers != 0)
      spans[i].first = state_pointer(momentum_buffers[i], "momentum_buffers", spans[i]);
    set_copy(copies, i, spans[i]);
  }
  SgdConstants constants{};
  constants.factor = maximize ? -factor : factor;
  constants.l2 = weight_decay;
  constants.momentum = momentum;
  constants.grad_weight = 1 - dampening;
  constants.lr = scalar_or(rate, "rate", lr);
  constants.nesterov = nesterov;
  constants.clear = zero_masked;
  if (overflow) return;
  Tasks(spans).run([&](const Piece& piece, int64_t) {
    const UpdateSpan& whole = spans[piece.tensor];
    SgdConstants own = constants;
    own.start = buffers != 0 && starts[piece.tensor];
    update_kernels(whole.dtype).sgd(cut(whole, piece), own);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("update_masked_sgd_", TORCH_BOX(&update_masked_sgd_cpu));
}

}  // namespace sparsekern
