// Formula    AdamW on the kept weights of many tensors, one launch for up to 36 of one pair of dtypes.
// Mapping    masked_adamw.cuh.
// Contract   sparsekern/ops/update/masked_adamw.py. Nothing is copied and nothing waits for the device,
//            so a step can be captured in a CUDA graph; numbers on the CPU are read when it is called.
#include <torch/csrc/stable/library.h>

#include "../launch.h"
#include "lists.h"
#include "masked_adamw.cuh"

namespace sparsekern {
namespace {

void update_masked_adamw_cuda(TensorList params, TensorList grads, TensorList exp_avgs,
                              TensorList exp_avg_sqs, TensorList steps, TensorList bits,
                              TensorList copies, std::optional<Tensor> grad_factor,
                              std::optional<Tensor> found_inf, std::optional<Tensor> rate,
                              double lr, double beta1, double beta2, double eps,
                              double weight_decay, bool decoupled, bool maximize,
                              bool zero_masked) {
  const Lists lists(params, "params");
  const size_t length = params.size();
  check_length(grads, "grads", length);
  check_length(exp_avgs, "exp_avgs", length);
  check_length(exp_avg_sqs, "exp_avg_sqs", length);
  check_length(steps, "steps", length);
  check_length(bits, "bits", length);
  check_copies(copies, length);
  if (params.empty()) return;

  std::vector<Row> rows;
  rows.reserve(length);
  for (size_t i = 0; i < length; ++i) {
    Row row = lists.param_row(params[i], grads[i], bits[i]);
    row.first = lists.state(exp_avgs[i], "exp_avgs", row);
    row.second = lists.state(exp_avg_sqs[i], "exp_avg_sqs", row);
    row.step = lists.scalar(steps[i], "steps");
    lists.set_copy(&row, copies, i);
    row.is_aligned = is_aligned(row);
    rows.push_back(row);
  }
  AdamwOptions options;
  options.factor = lists.scalar(grad_factor, "grad_factor", 1);
  options.found_inf = lists.scalar(found_inf, "found_inf", 0);
  options.rate = lists.scalar(rate, "rate", lr);
  options.beta1 = beta1;
  options.beta2 = beta2;
  options.eps = eps;
  options.weight_decay = weight_decay;
  options.decoupled = decoupled;
  options.maximize = maximize;
  options.clear = zero_masked;

  const Launches launches(lists.device());
  launch_steps<AdamwStep>(rows, options,
                          [&](auto step, const Table& table, int32_t chunks, const auto& own) {
                            run_update<decltype(step)>(table, chunks, own, launches.stream());
                            launches.check("masked_adamw");
                          });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, SPARSEKERN_DEVICE_KEY, m) {
  m.impl("update_masked_adamw_", TORCH_BOX(&update_masked_adamw_cuda));
}

}  // namespace sparsekern
