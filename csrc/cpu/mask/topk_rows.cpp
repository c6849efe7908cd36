// Formula    mask[r] = the counts[r] largest scores of row r; among equal ones the first; NaN ranks
//            lowest.
// Mapping    a task is a group of rows; a row's threshold is found by histograms of its keys.
// Cost       a row is read twice, its keys are read once or twice more in cache.
// Contract   sparsekern/ops/mask/topk_rows.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>

#include "../output.h"
#include "largest.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTask = 1 << 14;  // scores of a task

// Writes the mask of one row; false if it has fewer candidates than `wanted`. `keys` and `buffer`
// have room for a row.
template <typename T, typename Key>
bool select_row(const T* scores, const uint8_t* among, int64_t numel, int64_t wanted, Key* keys,
                Key* buffer, uint8_t* mask) {
  const auto is_candidate = [&](int64_t i) { return among == nullptr || among[i] != 0; };
  int64_t count = 0;
  Key low = Key(~Key(0)), high = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const Key key = key_of(scores[i]);
    const bool has = is_candidate(i);
    low = has ? std::min(low, key) : low;
    high = has ? std::max(high, key) : high;
    keys[count] = key;  // PERF: written over unless it counts; no branch to predict
    count += has;
  }
  if (wanted < 0 || wanted > count) return false;
  const Threshold<Key> last = wanted > 0 ? kth_largest(keys, count, wanted, low, high, buffer)
                                         : Threshold<Key>{Key(~Key(0)), 0};
  int64_t ties = last.ties, at = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const Key key = keys[at];
    const bool has = is_candidate(i), tie = has & (key == last.key) & (ties > 0);
    ties -= tie;
    at += has;
    mask[i] = uint8_t((has & (key > last.key)) | tie);
  }
  return true;
}

template <typename T>
void select_rows(const Tensor& scores, const int64_t* counts, const uint8_t* among, uint8_t* mask) {
  using Key = decltype(key_of(T()));
  const int64_t rows = scores.size(0), cols = scores.size(1);
  const auto* data = static_cast<const T*>(scores.data_ptr());
  const int64_t group = std::max<int64_t>(1, kTask / std::max<int64_t>(1, cols));
  ScratchFrame scratch;
  Key* keys = scratch.take<Key>(2 * cols * thread_count());
  std::atomic<bool> enough{true};
  parallel_tasks(ceil_div(rows, group), 4 * rows * cols, [&](int64_t task, int64_t slot) {
    Key* own = keys + 2 * cols * slot;
    const int64_t end = std::min(rows, (task + 1) * group);
    for (int64_t r = task * group; r < end; ++r)
      if (!select_row(data + r * cols, among != nullptr ? among + r * cols : nullptr, cols,
                      counts[r], own, own + cols, mask + r * cols))
        enough = false;
  });
  SPARSEKERN_CHECK(enough,
                   "Expected counts to be between 0 and the number of candidates of each row. Got "
                   "a count that is not.");
}

Tensor mask_topk_rows_cpu(Tensor scores, Tensor counts, std::optional<Tensor> among) {
  SPARSEKERN_CHECK(scores.dim() == 2, "Expected scores to have 2 dimensions. Got ", scores.dim(),
                   ".");
  const int64_t rows = scores.size(0), cols = scores.size(1);
  SPARSEKERN_CHECK(counts.scalar_type() == ScalarType::Long && counts.numel() == rows,
                   "Expected counts to be ", rows, " int64 numbers. Got ", counts.numel(), ".");
  const Tensor wanted = torch::stable::contiguous(counts);
  const Tensor contiguous = torch::stable::contiguous(scores);
  std::optional<Tensor> flags;
  if (among) {
    SPARSEKERN_CHECK(among->scalar_type() == ScalarType::Bool && among->dim() == 2 &&
                         among->size(0) == rows && among->size(1) == cols,
                     "Expected among to be a bool tensor of the shape of scores. Got ",
                     among->numel(), " elements.");
    flags = torch::stable::contiguous(*among);
  }
  Tensor mask = empty_output({rows, cols}, ScalarType::Bool);
  const auto* k = static_cast<const int64_t*>(wanted.data_ptr());
  const auto* candidates = flags ? static_cast<const uint8_t*>(flags->data_ptr()) : nullptr;
  auto* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  if (scores.scalar_type() == ScalarType::Double) {
    select_rows<double>(contiguous, k, candidates, out);
    return mask;
  }
  SPARSEKERN_CHECK(scores.scalar_type() == ScalarType::Float,
                   "Expected scores to be float32 or float64. Got another dtype.");
  select_rows<float>(contiguous, k, candidates, out);
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("mask_topk_rows", TORCH_BOX(&mask_topk_rows_cpu));
}

}  // namespace sparsekern
