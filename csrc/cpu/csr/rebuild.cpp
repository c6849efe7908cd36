// Formula    the index of a mask, written over the index of another mask with as many entries; and
//            map[j] = where entry j of the new index was in the old one, else -1.
// Mapping    first, a task is a group of rows: bits to columns, positions, panel starts, and how
//            many entries each column has. Then a task is a panel of columns: it walks the bits
//            of its columns in the transposed mask, or sorts its part of every row by counting.
//            The order is the same either way, and for any number of threads.
// Cost       one read of the mask, one of the old columns, one of the new, one write of each output.
// Contract   sparsekern/ops/csr/rebuild.py; layout of the panel starts: panel_starts.h.
#include <torch/csrc/stable/library.h>

#include "mask_rows.h"
#include "panel_starts.h"

namespace sparsekern {
namespace {

// The index as it was, in scratch memory.
struct OldRows {
  const int32_t* crow;
  const int32_t* col;

  OldRows(const Tensor& crow_tensor, const Tensor& col_tensor, ScratchFrame& scratch) {
    crow = copy(crow_tensor, scratch);
    col = copy(col_tensor, scratch);
  }

 private:
  static const int32_t* copy(const Tensor& t, ScratchFrame& scratch) {
    int32_t* target = scratch.take<int32_t>(t.numel());
    const int32_t* source = static_cast<const int32_t*>(t.data_ptr());
    parallel_range(t.numel(), [&](int64_t begin, int64_t end) {
      std::copy(source + begin, source + end, target + begin);
    });
    return target;
  }
};

// Where the outputs are. Without panel starts (a convolution) `starts` is scratch, `starts_t` null.
struct NewIndex {
  int32_t *crow, *col, *starts, *crow_t, *col_t, *perm, *starts_t, *positions;
};

struct Shape {
  int64_t rows, cols, taps;
  int64_t panel, panels;      // columns of one task of the counting sort
  int64_t panel_t, panels_t;  // of the panel starts of the transpose

  int64_t lists() const { return cols / taps; }
};

// What each thread needs for its rows, or for its columns.
struct RowScratch {
  int32_t* position;  // [cols] of the last entry of the old index in each column
  int32_t* columns;   // [cols] of the new row
  int32_t* before;    // see MaskKernels::columns
  int32_t* starts;    // [panels]
  int32_t* counts;    // [lists] entries in each
};
struct ColumnScratch {
  int32_t* next;    // [rows] or [lists of a panel]: where the next entry of each comes from or goes
  int32_t* rows;    // [rows] of the new column
  int32_t* before;  // see MaskKernels::columns
  int32_t* starts;  // [panels_t]
};

class Rebuild {
 public:
  Rebuild(const Shape& shape, const MaskRows& mask, const OldRows& old, const NewIndex& out,
          ScratchFrame& scratch)
      : s_(shape), mask_(mask), old_(old), out_(out), list_of_(scratch.take<int32_t>(s_.cols)) {
    for (int64_t c = 0; c < s_.cols; ++c) list_of_[c] = int32_t(c / s_.taps);
    const int64_t longest = std::max(s_.rows, s_.panel) + kSpareColumns;
    for (int64_t slot = 0; slot < thread_count(); ++slot) {
      rows_.push_back({scratch.take<int32_t>(s_.cols), scratch.take<int32_t>(mask.col_room()),
                       scratch.take<int32_t>(mask.word_room()),
                       scratch.take<int32_t>(s_.panels + 1), scratch.take<int32_t>(s_.lists())});
      columns_.push_back({scratch.take<int32_t>(longest), scratch.take<int32_t>(longest),
                          scratch.take<int32_t>(s_.rows / 64 + 2),
                          scratch.take<int32_t>(s_.panels_t + 1)});
      std::fill_n(rows_.back().position, s_.cols, -1);
      std::fill_n(rows_.back().counts, s_.lists(), 0);
    }
  }

  // By transposed bits: everything is written in order.
  void run_by_bits(ScratchFrame& scratch) {
    mask_.for_each_row([&](int64_t r, int64_t slot) { row<false, true>(r, rows_[size_t(slot)]); });
    const MaskRows transposed = mask_.transposed(scratch);
    transposed.count(out_.crow_t);
    parallel_tasks(s_.panels, out_.crow[s_.rows], [&](int64_t p, int64_t slot) {
      walk_panel(p, transposed, columns_[size_t(slot)]);
    });
  }

  // By a counting sort of the entries.
  template <bool kOneTap>
  void run_by_entries() {
    mask_.for_each_row(
        [&](int64_t r, int64_t slot) { row<true, kOneTap>(r, rows_[size_t(slot)]); });
    out_.crow_t[0] = 0;
    for (int64_t list = 0; list < s_.lists(); ++list) {
      int32_t count = 0;
      for (const RowScratch& each : rows_) count += each.counts[list];
      out_.crow_t[list + 1] = out_.crow_t[list] + count;
    }
    parallel_tasks(s_.panels, out_.crow[s_.rows], [&](int64_t p, int64_t slot) {
      sort_panel<kOneTap>(p, columns_[size_t(slot)].next);
    });
  }

 private:
  template <bool kCounts, bool kOneTap>
  void row(int64_t r, const RowScratch& own) const {
    // SAFETY: a thread's rows rise, so what an earlier row left in `position` is below `first`.
    const int32_t first = old_.crow[r], last = old_.crow[r + 1];
    for (int32_t i = first; i < last; ++i)
      if (uint32_t(old_.col[i]) < uint64_t(s_.cols)) own.position[old_.col[i]] = i;
    float_mask_kernels().columns(mask_.row(r), s_.panel, own.before, own.columns, own.starts);
    const int32_t begin = out_.crow[r], count = out_.crow[r + 1] - begin;
    int32_t* col = out_.col + begin;
    int32_t* positions = out_.positions + begin;
    for (int32_t j = 0; j < count; ++j) {
      const int32_t c = own.columns[j], position = own.position[c];
      col[j] = c;
      // PERF: -1 by a mask; a branch would be mispredicted for every grown weight.
      positions[j] = position | -int32_t(position < first);
      if constexpr (kCounts) ++own.counts[kOneTap ? c : list_of_[c]];
    }
    for (int64_t p = 0; p < s_.panels; ++p) out_.starts[p * s_.rows + r] = begin + own.starts[p];
    out_.starts[s_.panels * s_.rows + r] = begin + count;
  }

  // The columns of one panel. `next[r]` is the position of the first entry of row r that no column
  // has taken: columns rise, and so do the entries of a row.
  void walk_panel(int64_t p, const MaskRows& transposed, const ColumnScratch& own) const {
    std::copy_n(out_.starts + p * s_.rows, s_.rows, own.next);
    const int64_t last = std::min(s_.cols, (p + 1) * s_.panel);
    for (int64_t c = p * s_.panel; c < last; ++c) {
      float_mask_kernels().columns(transposed.row(c), s_.panel_t, own.before, own.rows, own.starts);
      const int32_t begin = out_.crow_t[c], count = out_.crow_t[c + 1] - begin;
      int32_t* col_t = out_.col_t + begin;
      int32_t* perm = out_.perm + begin;
      for (int32_t j = 0; j < count; ++j) {
        const int32_t r = own.rows[j];
        col_t[j] = r;
        perm[j] = own.next[r]++;
      }
      if (out_.starts_t == nullptr) continue;
      for (int64_t q = 0; q < s_.panels_t; ++q)
        out_.starts_t[q * s_.cols + c] = begin + own.starts[q];
      out_.starts_t[s_.panels_t * s_.cols + c] = begin + count;
    }
  }

  // The lists of one panel of columns, and where they begin in each panel of rows.
  template <bool kOneTap>
  void sort_panel(int64_t p, int32_t* next) const {
    const int64_t taps = kOneTap ? 1 : s_.taps;
    const int64_t first = p * s_.panel / taps;
    const int64_t last = std::min(s_.cols, (p + 1) * s_.panel) / taps;
    std::copy(out_.crow_t + first, out_.crow_t + last, next);
    const int32_t* begin = out_.starts + p * s_.rows;
    const int32_t* end = begin + s_.rows;
    for (int64_t q = 0; q < s_.panels_t; ++q) {
      if (out_.starts_t != nullptr)
        std::copy_n(next, last - first, out_.starts_t + q * s_.lists() + first);
      const int64_t last_row = std::min(s_.rows, (q + 1) * s_.panel_t);
      for (int64_t r = q * s_.panel_t; r < last_row; ++r) {
        for (int32_t j = begin[r]; j < end[r]; ++j) {
          const int32_t c = out_.col[j], list = kOneTap ? c : list_of_[c];
          const int32_t target = next[list - first]++;
          out_.col_t[target] = int32_t(r * taps + (c - list * taps));
          out_.perm[target] = j;
        }
      }
    }
    if (out_.starts_t != nullptr)
      std::copy_n(next, last - first, out_.starts_t + s_.panels_t * s_.lists() + first);
  }

  const Shape s_;
  const MaskRows& mask_;
  const OldRows& old_;
  const NewIndex out_;
  int32_t* list_of_;  // [cols]
  std::vector<RowScratch> rows_;
  std::vector<ColumnScratch> columns_;
};

int32_t* data_of(const Tensor& t, const char* name, int64_t numel) {
  check_int32(t, name, numel);
  return static_cast<int32_t*>(t.mutable_data_ptr());
}

void write_tail(const PanelGeometry& g, int32_t* starts) {
  const int32_t tail[] = {PanelGeometry::kFormat, int32_t(g.rows), int32_t(g.cols), int32_t(g.nnz)};
  std::copy(tail, tail + kPrefetchRows, starts + g.tail());
}

Tensor csr_rebuild_cpu(Tensor crow, Tensor col, Tensor starts, Tensor crow_t, Tensor col_t,
                       Tensor perm, Tensor starts_t, Tensor mask, int64_t cols, int64_t taps) {
  const int64_t rows = crow.numel() - 1, nnz = col.numel();
  SPARSEKERN_CHECK(rows >= 0 && cols >= 0 && taps >= 1 && cols % taps == 0,
                   "Expected taps to divide ", cols, " columns. Got ", taps, ".");
  SPARSEKERN_CHECK(rows * taps < int64_t(1) << 31 && cols < int64_t(1) << 31,
                   "Expected fewer than 2^31 rows times taps, and columns. Got ", rows, ", ", taps,
                   " and ", cols, ".");
  const bool panels = starts.numel() > 0;
  const PanelGeometry g(rows, cols, nnz), g_t(cols, rows, nnz);
  SPARSEKERN_CHECK(!panels || taps == 1, "Expected no panel starts of a convolution. Got ",
                   starts.numel(), " elements.");
  ScratchFrame scratch;
  NewIndex out{data_of(crow, "crow", rows + 1),
               data_of(col, "col", nnz),
               data_of(starts, "starts", panels ? g.numel() : 0),
               data_of(crow_t, "crow_t", cols / taps + 1),
               data_of(col_t, "col_t", nnz),
               data_of(perm, "perm", nnz),
               data_of(starts_t, "starts_t", panels ? g_t.numel() : 0),
               nullptr};
  check_row_bounds(out.crow, rows, nnz);
  const MaskRows kept(mask, rows, cols, scratch);
  int32_t* new_crow = scratch.take<int32_t>(rows + 1);
  const int64_t total = kept.count(new_crow);
  SPARSEKERN_CHECK(total == nnz, "Expected mask to have ", nnz, " True entries. Got ", total, ".");

  // Nothing has been written up to here, and nothing fails from here on.
  const OldRows old(crow, col, scratch);
  std::copy_n(new_crow, rows + 1, out.crow);
  Tensor positions = torch::stable::empty({nnz}, ScalarType::Int);
  out.positions = static_cast<int32_t*>(positions.mutable_data_ptr());
  Shape shape{rows, cols, taps, g.panel, g.panels, std::max<int64_t>(rows, 1), 1};
  if (panels) {
    shape.panel_t = g_t.panel;
    shape.panels_t = g_t.panels;
  } else {
    shape.panel = round_up(std::max<int64_t>(g.panel, 1), taps);
    shape.panels = ceil_div(cols, shape.panel);
    out.starts = scratch.take<int32_t>((shape.panels + 1) * rows);
    out.starts_t = nullptr;
  }
  Rebuild rebuild(shape, kept, old, out, scratch);
  // PERF: bits cost their number, entries the cache lines they are scattered over; they meet near
  // density 0.06 (1024 x 1024 and 4096 x 4096 on Zen 5).
  if (taps == 1 && 16 * nnz >= rows * cols) {
    rebuild.run_by_bits(scratch);
  } else if (taps == 1) {
    rebuild.run_by_entries<true>();
  } else {
    rebuild.run_by_entries<false>();
  }
  if (panels) {
    write_tail(g, out.starts);
    write_tail(g_t, out.starts_t);
  }
  return positions;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_rebuild_", TORCH_BOX(&csr_rebuild_cpu));
}

}  // namespace sparsekern
