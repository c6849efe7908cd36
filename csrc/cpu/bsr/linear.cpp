// Formula    y = x W^T + bias, W in rows of blocks.
// Mapping    a task is a tile of the batch, packed and multiplied by one thread in its own cache;
//            the tiles that do not come out even are shared: (tile, group of rows of blocks).
// Tile       up to 64 batch elements by the outputs of a group; a register tile of them is summed
//            over a whole row of blocks before it is stored.
// Arithmetic accumulated in the dtype of `values` (float, double), in the order of the columns.
// Contract   sparsekern/ops/bsr/linear.py; bodies: ../isa/bsr_spmm.inl.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "index.h"

namespace sparsekern {
namespace {

template <typename T>
Tensor forward(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
               const Tensor& crow, const Tensor& col, int64_t cols) {
  const Rows rows(x, dtype_of(x, "x"));
  const Blocks<T> blocks(values, crow, col, cols);
  SPARSEKERN_CHECK(rows.features == blocks.in_features(), "Expected x to have ",
                   blocks.in_features(), " features. Got ", rows.features, ".");
  if (bias) check_values<T>(*bias, "bias", blocks.out_features());

  Tensor y = empty_with_features(x, blocks.out_features());
  const Output output(y, rows.dtype, blocks.out_features());
  const T* b = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
  const RowGroups<T> groups(blocks.plain);

  const std::vector<Tile> tiles = make_tiles(rows.batch);
  const int64_t count = int64_t(tiles.size());
  const int64_t threads = thread_count();
  const int64_t whole = count - count % threads;
  const int64_t shared = count - whole;
  const int64_t work = kTileWidth * (blocks.nnz() + rows.features);
  ScratchFrame scratch;
  const PackedTiles<T> packed(rows, threads + shared, kTileWidth, scratch);
  const int64_t output_tile = groups.scratch(blocks.plain);  // one private to each thread
  T* outputs = scratch.take<T>(threads * output_tile);

  const int64_t strips = packed.strips();
  parallel_tasks(whole + shared * strips, count * work, [&](int64_t task, int64_t slot) {
    if (task >= whole) {
      const int64_t index = (task - whole) / strips;
      return packed.pack_strip(tiles[whole + index], threads + index, (task - whole) % strips);
    }
    packed.pack(tiles[task], slot);
    for (int64_t group = 0; group < groups.count; ++group)
      multiply_blocks(blocks.plain, groups, b, tiles[task], packed.panel(slot), group,
                      outputs + slot * output_tile, output);
  });
  parallel_tasks(shared * groups.count, shared * work, [&](int64_t task, int64_t slot) {
    const int64_t index = task % shared;
    multiply_blocks(blocks.plain, groups, b, tiles[whole + index], packed.panel(threads + index),
                    task / shared, outputs + slot * output_tile, output);
  });
  return y;
}

Tensor bsr_linear_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, std::optional<Tensor>,
                      Tensor crow, Tensor col, Tensor crow_t, Tensor, Tensor, std::string variant) {
  SPARSEKERN_CHECK(variant == "panel" || variant == "auto",
                   "Expected variant to be 'panel' in native CPU code. Got '", variant, "'.");
  const int64_t cols = crow_t.numel() - 1;
  if (values.scalar_type() == ScalarType::Double)
    return forward<double>(x, values, bias, crow, col, cols);
  return forward<float>(x, values, bias, crow, col, cols);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("bsr_linear", TORCH_BOX(&bsr_linear_cpu)); }

}  // namespace sparsekern
