// Formula    map[j] = position in the old index of the entry at position j of the new one, else -1.
// Mapping    a task is a group of rows; the two sorted column lists of a row are merged.
// Cost       one read of both column lists, one write of the map.
// Contract   sparsekern/ops/csr/position_map.py.
#include <torch/csrc/stable/library.h>

#include "batch.h"

namespace sparsekern {
namespace {

Tensor csr_position_map_cpu(Tensor crow_old, Tensor col_old, Tensor crow, Tensor col) {
  const int64_t rows = crow.numel() - 1;
  check_int32(crow_old, "crow_old", rows + 1);
  check_int32(crow, "crow", rows + 1);
  check_int32(col_old, "col_old", col_old.numel());
  check_int32(col, "col", col.numel());
  const int32_t* old_start = static_cast<const int32_t*>(crow_old.data_ptr());
  const int32_t* old_col = static_cast<const int32_t*>(col_old.data_ptr());
  const int32_t* new_start = static_cast<const int32_t*>(crow.data_ptr());
  const int32_t* new_col = static_cast<const int32_t*>(col.data_ptr());
  check_row_bounds(old_start, rows, col_old.numel());
  check_row_bounds(new_start, rows, col.numel());
  Tensor map = torch::stable::empty({col.numel()}, ScalarType::Int);
  int32_t* positions = static_cast<int32_t*>(map.mutable_data_ptr());

  constexpr int64_t kGroup = 64;  // rows of a task
  parallel_tasks(ceil_div(rows, kGroup), col.numel() + col_old.numel(),
                 [&](int64_t group, int64_t) {
                   for (int64_t r = group * kGroup; r < std::min(rows, (group + 1) * kGroup); ++r) {
                     int32_t i = old_start[r];
                     for (int32_t j = new_start[r]; j < new_start[r + 1]; ++j) {
                       while (i < old_start[r + 1] && old_col[i] < new_col[j]) ++i;
                       positions[j] = i < old_start[r + 1] && old_col[i] == new_col[j] ? i : -1;
                     }
                   }
                 });
  return map;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_position_map", TORCH_BOX(&csr_position_map_cpu));
}

}  // namespace sparsekern
