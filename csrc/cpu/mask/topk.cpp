// Formula    mask = the k largest scores; among equal ones the lowest positions; NaN ranks lowest.
// Mapping    largest.h selects into bits; they are written out as bytes, or as they are.
// Cost       one read of the scores, one write of the mask.
// Contract   sparsekern/ops/mask/topk.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../output.h"
#include "largest.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The bits of the k largest, in scratch memory.
template <typename T>
const uint64_t* select(const Tensor& scores, int64_t k, const uint64_t* among,
                       ScratchFrame& scratch) {
  const int64_t numel = scores.numel(), words = ceil_div(numel, 64);
  uint64_t* bits = scratch.take<uint64_t>(words);
  if (k == 0) {
    std::fill_n(bits, words, 0);
    return bits;
  }
  std::vector<ScorePiece<T>> pieces;
  add_pieces(static_cast<const T*>(scores.data_ptr()), among, numel, bits, pieces);
  Largest<T>(std::move(pieces), scratch).select(k);
  return bits;
}

const uint64_t* select_any(const Tensor& scores, int64_t k, const uint64_t* among,
                           ScratchFrame& scratch) {
  SPARSEKERN_CHECK(k >= 0 && k <= scores.numel(), "Expected k to be between 0 and ", scores.numel(),
                   ". Got ", k, ".");
  const Tensor contiguous = torch::stable::contiguous(scores);
  if (scores.scalar_type() == ScalarType::Double)
    return select<double>(contiguous, k, among, scratch);
  SPARSEKERN_CHECK(scores.scalar_type() == ScalarType::Float,
                   "Expected scores to be float32 or float64. Got another dtype.");
  return select<float>(contiguous, k, among, scratch);
}

Tensor mask_topk_cpu(Tensor scores, int64_t k, std::optional<Tensor> among) {
  ScratchFrame scratch;
  const int64_t numel = scores.numel();
  uint64_t* candidates = nullptr;
  if (among) {
    SPARSEKERN_CHECK(among->scalar_type() == ScalarType::Bool && among->numel() == numel,
                     "Expected among to be a bool tensor of the shape of scores. Got ",
                     among->numel(), " elements.");
    const Tensor flags = torch::stable::contiguous(*among);
    candidates = scratch.take<uint64_t>(ceil_div(numel, 64));
    words_of_bytes(static_cast<const uint8_t*>(flags.data_ptr()), numel, candidates);
  }
  const uint64_t* bits = select_any(scores, k, candidates, scratch);
  const auto sizes = scores.sizes();
  Tensor mask = empty_output({sizes.begin(), sizes.end()}, ScalarType::Bool);
  bytes_of_bits(reinterpret_cast<const uint8_t*>(bits), numel,
                static_cast<uint8_t*>(mask.mutable_data_ptr()));
  return mask;
}

Tensor mask_topk_bits_cpu(Tensor scores, int64_t k, std::optional<Tensor> among) {
  ScratchFrame scratch;
  const int64_t numel = scores.numel();
  uint64_t* candidates = nullptr;
  if (among) {
    SPARSEKERN_CHECK(among->scalar_type() == ScalarType::Byte && among->is_contiguous() &&
                         among->numel() == ceil_div(numel, 8),
                     "Expected among to be ", ceil_div(numel, 8), " contiguous bytes. Got ",
                     among->numel(), " elements.");
    candidates = scratch.take<uint64_t>(ceil_div(numel, 64));
    words_of_bits(static_cast<const uint8_t*>(among->data_ptr()), numel, candidates);
  }
  const uint64_t* bits = select_any(scores, k, candidates, scratch);
  Tensor packed = torch::stable::empty({ceil_div(numel, 8)}, ScalarType::Byte);
  if (packed.numel() > 0) std::memcpy(packed.mutable_data_ptr(), bits, size_t(packed.numel()));
  return packed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("mask_topk", TORCH_BOX(&mask_topk_cpu));
  m.impl("mask_topk_bits", TORCH_BOX(&mask_topk_bits_cpu));
}

}  // namespace sparsekern
