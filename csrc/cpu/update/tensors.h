// The tensor lists of the update ops: checked views, and how they are cut into tasks.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "../../common/ceil_div.h"
#include "../../common/tensor_list.h"
#include "../isa/update_kernels.h"
#include "../parallel.h"

namespace sparsekern {

// Weights of one task: a 64th of all, within these bounds; multiples of kWordBits, so that a word of
// the mask is of one task alone. PERF: seven streams of memory start anew with every piece. 10M
// weights in pieces of 16K take 3.6 ms, in larger ones 3.0 (two threads, Zen 5).
constexpr int64_t kTasks = 64;
constexpr int64_t kMinTaskWeights = int64_t(1) << 14;
constexpr int64_t kMaxTaskWeights = int64_t(1) << 18;

struct Piece {
  int64_t tensor, first, count;
};

// Pieces of all tensors, gathered into tasks of about the same size: a large tensor is cut into many
// tasks, and many small ones share a task. The cut follows from the sizes alone.
class Tasks {
 public:
  explicit Tasks(const std::vector<UpdateSpan>& spans) {
    for (const UpdateSpan& span : spans) weights_ += span.count;
    const int64_t share = round_up(weights_ / kTasks, kWordBits);
    const int64_t size = std::clamp(share, kMinTaskWeights, kMaxTaskWeights);
    int64_t gathered = size;
    for (int64_t tensor = 0; tensor < int64_t(spans.size()); ++tensor) {
      const int64_t numel = spans[tensor].count;
      for (int64_t first = 0; first < numel; first += size) {
        const int64_t count = std::min(size, numel - first);
        if (gathered + count > size) {
          starts_.push_back(int64_t(pieces_.size()));
          gathered = 0;
        }
        pieces_.push_back({tensor, first, count});
        gathered += count;
      }
    }
    count_ = int64_t(starts_.size());
    starts_.push_back(int64_t(pieces_.size()));
  }

  int64_t count() const { return count_; }

  // Calls body(piece, task) for every piece, on all threads.
  template <typename Body>
  void run(const Body& body) const {
    parallel_tasks(count_, weights_, [&](int64_t task, int64_t) {
      for (int64_t i = starts_[task]; i < starts_[task + 1]; ++i) body(pieces_[i], task);
    });
  }

 private:
  std::vector<Piece> pieces_;
  std::vector<int64_t> starts_;  // first piece of each task
  int64_t count_ = 0;
  int64_t weights_ = 0;
};

// The part of a tensor that a piece names.
inline UpdateSpan cut(const UpdateSpan& whole, const Piece& piece) {
  const int64_t offset = piece.first * bytes_of(whole.dtype);
  const int64_t state_offset = piece.first * (whole.dtype == Dtype::kDouble ? 8 : 4);
  const auto moved = [](void* p, int64_t bytes) -> void* {
    return p == nullptr ? nullptr : static_cast<char*>(p) + bytes;
  };
  UpdateSpan part = whole;
  part.param = moved(whole.param, offset);
  part.grad = static_cast<const char*>(whole.grad) + piece.first * bytes_of(whole.grad_dtype);
  part.copy = moved(whole.copy, 2 * piece.first);
  part.first = moved(whole.first, state_offset);
  part.second = moved(whole.second, state_offset);
  part.bits = whole.bits == nullptr ? nullptr : whole.bits + piece.first / 8;
  part.count = piece.count;
  return part;
}

inline void check_elements(const Tensor& t, const char* name, ScalarType type, int64_t numel) {
  SPARSEKERN_CHECK(t.scalar_type() == type && t.is_contiguous() && t.numel() == numel, "Expected ",
                   name, " to be ", numel, " contiguous elements of the right dtype. Got ",
                   t.numel(), " elements.");
}

inline void* state_pointer(const Tensor& t, const char* name, const UpdateSpan& span) {
  check_elements(t, name, span.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float,
                 span.count);
  return t.mutable_data_ptr();
}

// Gradients and masks; the caller adds what it updates. An empty mask means that all are kept.
inline UpdateSpan gradient_span(const Tensor& grad, const Tensor& bits) {
  UpdateSpan span{};
  span.dtype = span.grad_dtype = float_dtype(grad, "grads");
  span.count = grad.numel();
  check_elements(grad, "grads", grad.scalar_type(), span.count);
  span.grad = grad.data_ptr();
  if (bits.numel() == 0) return span;
  check_elements(bits, "bits", ScalarType::Byte, ceil_div(span.count, 8));
  span.bits = static_cast<const uint8_t*>(bits.data_ptr());
  return span;
}

inline UpdateSpan param_span(const Tensor& param, const Tensor& grad, const Tensor& bits) {
  UpdateSpan span = gradient_span(grad, bits);
  span.dtype = float_dtype(param, "params");
  // Weights in float take gradients in 16 bits; all others have their gradients' dtype.
  const bool wide = span.dtype == Dtype::kFloat && bytes_of(span.grad_dtype) == 2;
  check_elements(param, "params", wide ? ScalarType::Float : grad.scalar_type(), span.count);
  span.param = param.mutable_data_ptr();
  return span;
}

// Where the new weights go besides, if there is a copy for them.
inline void set_copy(const TensorList& copies, size_t i, UpdateSpan& span) {
  if (copies.empty() || copies[i].numel() == 0) return;
  span.copy_dtype = float_dtype(copies[i], "copies");
  SPARSEKERN_CHECK(
      span.dtype == Dtype::kFloat && bytes_of(span.copy_dtype) == 2,
      "Expected copies to be bfloat16 or float16 ones of float32 weights. Got others.");
  check_elements(copies[i], "copies", copies[i].scalar_type(), span.count);
  span.copy = copies[i].mutable_data_ptr();
}

// A tensor of one float32 or float64.
inline double scalar_of(const Tensor& t, const char* name) {
  const Dtype dtype = float_dtype(t, name);
  SPARSEKERN_CHECK(t.numel() == 1 && (dtype == Dtype::kFloat || dtype == Dtype::kDouble),
                   "Expected ", name, " to be one float32 or float64. Got ", t.numel(),
                   " elements.");
  return dtype == Dtype::kDouble ? *static_cast<const double*>(t.data_ptr())
                                 : double(*static_cast<const float*>(t.data_ptr()));
}

inline double scalar_or(const std::optional<Tensor>& t, const char* name, double missing) {
  return t ? scalar_of(*t, name) : missing;
}

}  // namespace sparsekern
