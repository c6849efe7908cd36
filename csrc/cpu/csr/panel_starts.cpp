// Formula    starts[p][r] = first position in row r whose column is at least p * panel;
//            starts[panels][r] = end of row r: csr_panel_starts.
// Mapping    a task is a group of rows.
// Cost       one read of `col`, one write of the starts.
// Contract   sparsekern/ops/csr/panel_starts.py; layout: panel_starts.h.
#include "panel_starts.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../common/check.h"
#include "../parallel.h"

namespace sparsekern {
namespace {

using torch::stable::Tensor;

constexpr int64_t kMaxSize = int64_t(1) << 31;
constexpr int64_t kGroup = 64;  // rows of a task

void row_starts(const PanelGeometry& g, int64_t row, const int32_t* crow, const int32_t* col,
                int32_t* starts) {
  int32_t j = crow[row];
  for (int64_t p = 0; p < g.panels; ++p) {
    while (j < crow[row + 1] && col[j] < p * g.panel) ++j;
    starts[p * g.rows + row] = j;
  }
  starts[g.panels * g.rows + row] = crow[row + 1];
}

Tensor csr_panel_starts_cpu(Tensor crow, Tensor col, int64_t cols) {
  const PanelGeometry g(crow.numel() - 1, cols, col.numel());
  SPARSEKERN_CHECK(g.rows < kMaxSize && cols < kMaxSize,
                   "Expected fewer than 2^31 rows and columns. Got ", g.rows, " and ", cols, ".");
  check_int32(crow, "crow", g.rows + 1);
  check_int32(col, "col", g.nnz);
  const int32_t* crow_data = static_cast<const int32_t*>(crow.data_ptr());
  const int32_t* col_data = static_cast<const int32_t*>(col.data_ptr());
  check_row_bounds(crow_data, g.rows, g.nnz);

  Tensor buffer = torch::stable::empty({g.numel()}, torch::headeronly::ScalarType::Int);
  int32_t* starts = static_cast<int32_t*>(buffer.mutable_data_ptr());
  std::atomic<bool> columns_ok{true};
  parallel_tasks(ceil_div(g.rows, kGroup), g.nnz + g.numel(), [&](int64_t group, int64_t) {
    for (int64_t r = group * kGroup; r < std::min(g.rows, (group + 1) * kGroup); ++r) {
      if (!columns_rise(col_data, crow_data[r], crow_data[r + 1], cols)) columns_ok = false;
      row_starts(g, r, crow_data, col_data, starts);
    }
  });
  SPARSEKERN_CHECK(columns_ok, "Expected col to rise within each row, from 0 to below ", cols,
                   ". Got columns that do not.");
  const int32_t tail[] = {PanelGeometry::kFormat, int32_t(g.rows), int32_t(cols), int32_t(g.nnz)};
  std::copy(tail, tail + kPrefetchRows, starts + g.tail());
  return buffer;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_panel_starts", TORCH_BOX(&csr_panel_starts_cpu));
}

}  // namespace sparsekern
