// Formula    crow[r] = number of True above row r; col = the True columns of each row, ascending.
// Mapping    the mask becomes bits; a task is a group of rows.
// Cost       one read of the mask, one write of col.
// Contract   sparsekern/ops/csr/from_mask.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "mask_rows.h"

namespace sparsekern {
namespace {

std::tuple<Tensor, Tensor> csr_from_mask_cpu(Tensor mask, int64_t nnz) {
  SPARSEKERN_CHECK(mask.scalar_type() == ScalarType::Bool && mask.dim() == 2,
                   "Expected mask to be a bool matrix. Got another dtype or ", mask.dim(),
                   " dimensions.");
  ScratchFrame scratch;
  const MaskRows rows(mask, mask.size(0), mask.size(1), scratch);
  Tensor crow = torch::stable::empty({mask.size(0) + 1}, ScalarType::Int);
  int32_t* crow_data = static_cast<int32_t*>(crow.mutable_data_ptr());
  const int64_t total = rows.count(crow_data);
  SPARSEKERN_CHECK(total == nnz, "Expected nnz to be the number of True entries of mask, ", total,
                   ". Got ", nnz, ".");
  Tensor col = torch::stable::empty({nnz}, ScalarType::Int);
  int32_t* col_data = static_cast<int32_t*>(col.mutable_data_ptr());
  const int64_t room = rows.col_room() + rows.word_room();
  int32_t* buffers = scratch.take<int32_t>(thread_count() * room);
  rows.for_each_row([&](int64_t r, int64_t slot) {
    int32_t* found = buffers + slot * room;
    int32_t start = 0;  // of the only panel
    float_mask_kernels().columns(rows.row(r), mask.size(1), found + rows.col_room(), found, &start);
    std::copy_n(found, crow_data[r + 1] - crow_data[r], col_data + crow_data[r]);
  });
  return {crow, col};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_from_mask", TORCH_BOX(&csr_from_mask_cpu));
}

}  // namespace sparsekern
