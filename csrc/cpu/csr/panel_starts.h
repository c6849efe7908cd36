// Where the entries of each row begin in each panel of columns: what the CPU kernels walk.
#pragma once
#include <cstdint>

#include "../../common/ceil_div.h"
#include "../isa/kernels.h"

namespace sparsekern {

// Sizes that follow from the shape and the number of non-zeros alone, so that a change of topology
// of equal count rewrites the buffer in place. ops/csr/panel_starts.py holds the same formulas.
struct PanelGeometry {
  int64_t rows, cols, nnz;
  int64_t panel;      // columns of one cell
  int64_t row_block;  // rows of one cell
  int64_t panels, blocks;

  PanelGeometry(int64_t rows, int64_t cols, int64_t nnz) : rows(rows), cols(cols), nnz(nnz) {
    // PERF: about 16 entries a row and panel amortise the round trip of the row's accumulators;
    // 96 columns keep the packed activations in L1, more in L2 (docs/cpu_kernels.md).
    const int64_t wanted = nnz > 0 ? kWantedEntries * rows * cols / nnz : kMaxPanel;
    const int64_t width = wanted < kMinPanel ? kMinPanel : wanted > kMaxPanel ? kMaxPanel : wanted;
    panels = ceil_div(cols, width / 32 * 32);
    panel = panels > 0 ? ceil_div(cols, panels) : 0;
    row_block = rows >= 1024 ? 256 : rows > 128 ? round_up(ceil_div(rows, 4), 16) : 32;
    blocks = ceil_div(rows, row_block);
  }

  static constexpr int64_t kWantedEntries = 16;
  static constexpr int64_t kMinPanel = 96;
  static constexpr int64_t kMaxPanel = 1024;
  static constexpr int32_t kFormat = 2;

  // Layout of the int32 buffer: starts[panels + 1][rows] | format, rows, cols, nnz. The last four
  // double as the spare elements that prefetching reads.
  int64_t tail() const { return (panels + 1) * rows; }
  int64_t numel() const { return tail() + kPrefetchRows; }
};
static_assert(kPrefetchRows == 4, "the tail of the buffer has four elements");

// A typed view of such a buffer.
struct PanelStarts {
  PanelGeometry geometry;
  const int32_t* starts;

  CellRows cell(int64_t block, int64_t panel) const {
    const PanelGeometry& g = geometry;
    const int64_t first = block * g.row_block;
    const int64_t rows = g.rows - first < g.row_block ? g.rows - first : g.row_block;
    const int32_t* begin = starts + panel * g.rows + first;
    // Average bytes of a row's entries, and one line for those that begin in mid-line.
    const int64_t cells = g.rows * g.panels;
    const int lines = int(ceil_div(4 * g.nnz, 64 * (cells > 0 ? cells : 1))) + 1;
    return {begin, begin + g.rows, rows, g.nnz, lines < 6 ? lines : 6};
  }
};

}  // namespace sparsekern
