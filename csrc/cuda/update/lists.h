// The tensor lists of the update ops as checked rows. Python checks arguments first; what fails here
// was called around it.
#pragma once
#include <optional>

#include "../../common/tensor_list.h"
#include "../launch.h"
#include "table.cuh"

namespace sparsekern {

// Lists of one call, all on one CUDA device.
class Lists {
 public:
  // The device of the first tensor; -1 without one.
  explicit Lists(const TensorList& first, const char* name) {
    if (first.empty()) return;
    SPARSEKERN_CHECK(is_on_device(first[0]), "Expected ", name,
                     "[0] to be on a CUDA device. Got one on another.");
    device_ = first[0].get_device_index();
  }

  int32_t device() const { return device_; }

  // An array of this many elements, contiguous and on the device.
  void* array(const Tensor& t, const char* name, ScalarType type, int64_t numel) const {
    SPARSEKERN_CHECK(is_on_device(t) && t.get_device_index() == device_, "Expected ", name,
                     " to be on cuda:", device_, ". Got a tensor on another device.");
    SPARSEKERN_CHECK(t.scalar_type() == type && t.is_contiguous() && t.numel() == numel,
                     "Expected ", name, " to be ", numel,
                     " contiguous elements of the right dtype. Got ", t.numel(), " elements.");
    return t.data_ptr();
  }

  // Gradients and their mask; an empty one means that all are kept.
  Row gradient_row(const Tensor& grad, const Tensor& bits) const {
    Row row;
    row.count = grad.numel();
    row.dtype = row.grad_dtype = float_dtype(grad, "grads");
    row.grad = array(grad, "grads", grad.scalar_type(), row.count);
    if (bits.numel() != 0) {
      row.bits = static_cast<const uint8_t*>(
          array(bits, "bits", ScalarType::Byte, ceil_div(row.count, 8)));
    }
    return row;
  }

  Row param_row(const Tensor& param, const Tensor& grad, const Tensor& bits) const {
    Row row = gradient_row(grad, bits);
    row.dtype = float_dtype(param, "params");
    row.param = array(param, "params", param.scalar_type(), row.count);
    const bool is_wider = row.dtype == Dtype::kFloat && row.grad_dtype != Dtype::kDouble;
    SPARSEKERN_CHECK(row.grad_dtype == row.dtype || is_wider,
                     "Expected grads to have the dtype of params, or 16 bits where these are "
                     "float32. Got another dtype.");
    return row;
  }

  void* state(const Tensor& t, const char* name, const Row& row) const {
    const bool is_double = row.dtype == Dtype::kDouble;
    return array(t, name, is_double ? ScalarType::Double : ScalarType::Float, row.count);
  }

  // The 16-bit copy of the weights, if there is one.
  void set_copy(Row* row, const TensorList& copies, size_t i) const {
    if (copies.empty() || copies[i].numel() == 0) return;
    const ScalarType type = copies[i].scalar_type();
    const bool is_short = type == ScalarType::Half || type == ScalarType::BFloat16;
    SPARSEKERN_CHECK(
        row->dtype == Dtype::kFloat && is_short,
        "Expected copies to be bfloat16 or float16 ones of float32 weights. Got others.");
    row->copy = array(copies[i], "copies", type, row->count);
    row->copy_is_half = type == ScalarType::Half;
  }

  // One float32 or float64: read by kernels from the device, or here from the host.
  Scalar scalar(const std::optional<Tensor>& t, const char* name, double otherwise) const {
    return t ? scalar(*t, name) : Scalar{nullptr, otherwise, false};
  }
  Scalar scalar(const Tensor& t, const char* name) const {
    const Dtype dtype = float_dtype(t, name);
    const bool is_double = dtype == Dtype::kDouble;
    SPARSEKERN_CHECK(t.numel() == 1 && (is_double || dtype == Dtype::kFloat), "Expected ", name,
                     " to be one float32 or float64. Got ", t.numel(), " elements.");
    const bool is_here = is_on_device(t) && t.get_device_index() == device_;
    SPARSEKERN_CHECK(is_here || t.is_cpu(), "Expected ", name, " to be on cuda:", device_,
                     " or the CPU. Got a tensor on another device.");
    Scalar found{t.data_ptr(), 0, is_double};
    return is_here ? found : Scalar{nullptr, found.read(), false};
  }

 private:
  int32_t device_ = -1;
};

}  // namespace sparsekern
