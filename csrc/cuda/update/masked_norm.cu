// Formula    the L2 norm of the kept gradients of many tensors, times a factor.
// Mapping    masked_norm.cuh.
// Contract   sparsekern/ops/update/masked_norm.py. Nothing is copied and nothing waits for the device;
//            a factor on the CPU is read when it is called.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../launch.h"
#include "lists.h"
#include "masked_norm.cuh"

namespace sparsekern {
namespace {

Tensor update_masked_norm_cuda(TensorList grads, TensorList bits,
                               std::optional<Tensor> grad_factor) {
  const Lists lists(grads, "grads");
  const size_t length = grads.size();
  check_length(bits, "bits", length);
  SPARSEKERN_CHECK(!grads.empty(), "Expected grads to hold a tensor on a CUDA device. Got none.");
  std::vector<Row> rows;
  rows.reserve(length);
  bool is_double = false;
  for (size_t i = 0; i < length; ++i) {
    Row row = lists.gradient_row(grads[i], bits[i]);
    row.is_aligned = is_aligned(row);
    is_double = is_double || row.dtype == Dtype::kDouble;
    rows.push_back(row);
  }
  const Scalar factor = lists.scalar(grad_factor, "grad_factor", 1);

  const Launches launches(lists.device());
  const torch::stable::Device device(kDeviceType, lists.device());
  const int64_t chunks = count_chunks(rows);
  const Tensor partial = torch::stable::empty({chunks}, ScalarType::Double, std::nullopt, device);
  double* const sums = static_cast<double*>(partial.data_ptr());
  launch_norm(rows, [&](auto gradient, const Table& table, int32_t own, int64_t first) {
    run_norm<decltype(gradient)>(table, own, factor, sums + first, launches.stream());
    launches.check("masked_norm");
  });

  const ScalarType type = is_double ? ScalarType::Double : ScalarType::Float;
  Tensor norm = torch::stable::empty({}, type, std::nullopt, device);
  if (is_double) {
    run_norm_final(sums, chunks, static_cast<double*>(norm.data_ptr()), launches.stream());
  } else {
    run_norm_final(sums, chunks, static_cast<float*>(norm.data_ptr()), launches.stream());
  }
  launches.check("masked_norm");
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, SPARSEKERN_DEVICE_KEY, m) {
  m.impl("update_masked_norm", TORCH_BOX(&update_masked_norm_cuda));
}

}  // namespace sparsekern
