// Formula    SGD with momentum on the kept weights of many tensors, one launch for up to 36 of one pair
//            of dtypes.
// Mapping    masked_sgd.cuh.
// Contract   sparsekern/ops/update/masked_sgd.py. Nothing is copied and nothing waits for the device,
//            so a step can be captured in a CUDA graph; numbers on the CPU are read when it is called.
#include <torch/csrc/stable/library.h>

#include "../launch.h"
#include "lists.h"
#include "masked_sgd.cuh"

namespace sparsekern {
namespace {

void update_masked_sgd_cuda(TensorList params, TensorList grads, TensorList momentum_buffers,
                            std::vector<bool> starts, TensorList bits, TensorList copies,
                            std::optional<Tensor> grad_factor, std::optional<Tensor> found_inf,
                            std::optional<Tensor> rate, double lr, double momentum,
                            double dampening, double weight_decay, bool nesterov, bool maximize,
                            bool zero_masked) {
  const Lists lists(params, "params");
  const size_t length = params.size();
  const size_t buffers = momentum == 0 ? 0 : length;
  check_length(grads, "grads", length);
  check_length(momentum_buffers, "momentum_buffers", buffers);
  check_length(bits, "bits", length);
  check_copies(copies, length);
  SPARSEKERN_CHECK(starts.size() == buffers, "Expected starts to have ", int64_t(buffers),
                   " entries. Got ", int64_t(starts.size()), ".");
  if (params.empty()) return;

  std::vector<Row> rows;
  rows.reserve(length);
  for (size_t i = 0; i < length; ++i) {
    Row row = lists.param_row(params[i], grads[i], bits[i]);
    if (buffers != 0) {
      row.first = lists.state(momentum_buffers[i], "momentum_buffers", row);
      row.is_start = starts[i];
    }
    lists.set_copy(&row, copies, i);
    row.is_aligned = is_aligned(row);
    rows.push_back(row);
  }
  SgdOptions options;
  options.factor = lists.scalar(grad_factor, "grad_factor", 1);
  options.found_inf = lists.scalar(found_inf, "found_inf", 0);
  options.rate = lists.scalar(rate, "rate", lr);
  options.momentum = momentum;
  options.dampening = dampening;
  options.weight_decay = weight_decay;
  options.nesterov = nesterov;
  options.maximize = maximize;
  options.clear = zero_masked;

  const Launches launches(lists.device());
  launch_steps<SgdStep>(rows, options,
                        [&](auto step, const Table& table, int32_t chunks, const auto& own) {
                          run_update<decltype(step)>(table, chunks, own, launches.stream());
                          launches.check("masked_sgd");
                        });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, SPARSEKERN_DEVICE_KEY, m) {
  m.impl("update_masked_sgd_", TORCH_BOX(&update_masked_sgd_cuda));
}

}  // namespace sparsekern
