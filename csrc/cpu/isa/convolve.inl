// Formula    convolve: to[r][:] = activation(from[r][:] + sum_j values[j] * panel[offsets[j]..][:]);
//            dvalues:  gradient[j] (+)= sum_lanes rows[r][:] * panel[offsets[j]..][:];
//            both:     the two of them from one walk, over row r's entries of one panel.
// Mapping    row after row; a row's sums and the row of `rows` stay in registers while its entries
//            are walked: one load per vector, one multiply-add for `convolve` and one for `dvalues`;
//            the sums of four entries are folded over their lanes by one tree of shuffles.
// Tile       `width` pixels = NV vectors, by the rows of one block.
// Arithmetic accumulated in T (float or double), in the order of the offsets.
// Alignment  none required; packed patches are aligned to vectors.
// Contract   PanelKernels in kernels.h.
//
// PERF: `both` does 16 multiply-adds on 8 loads, where loads bind each of the two walks: 2.95 ns an
// entry of 128 lanes, and 1.58 + 2.05 apart (Zen 5, 29 entries a row and panel). It needs 22
// registers, so narrower instruction sets walk twice.
#pragma once
#include "activation.inl"
#include "add_entry.inl"
#include "prefetch.inl"

template <typename V>
struct Convolve {
  using T = typename V::Element;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;
  static constexpr int kRegisterWidth = W >= 16 ? 128 : 64;  // lanes whose sums registers hold

  template <int NV, typename Rows>
  static SPARSEKERN_INLINE void load_row(const Rows& rows, int64_t r, Reg* row) {
    const T* begin = rows.data + r * rows.stride;
    if (rows.counts == nullptr) {
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) row[v] = V::load(begin + rows.lanes[v * W / 16] + v * W % 16);
    } else {
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v)
        row[v] = V::load(begin + rows.lanes[v * W / 16] + v * W % 16,
                         V::lanes(0, rows.counts[v * W / 16] - v * W % 16));
    }
  }

  template <int NV>
  static SPARSEKERN_INLINE void store_row(const TileRows<T>& rows, int64_t r, const Reg* row) {
    T* begin = rows.data + r * rows.stride;
    if (rows.counts == nullptr) {
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) V::store(begin + rows.lanes[v * W / 16] + v * W % 16, row[v]);
    } else {
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) {
        const int count = rows.counts[v * W / 16] - v * W % 16;
        V::store_first(begin + rows.lanes[v * W / 16] + v * W % 16, row[v],
                       count < 0   ? 0
                       : count > W ? W
                                   : count);
      }
    }
  }

  template <int NV>
  static SPARSEKERN_INLINE void first_sums(const TileRows<const T>& from, const T* bias, int64_t r,
                                           Reg* sum) {
    if (from.data != nullptr) return load_row<NV>(from, r, sum);
    const Reg start = bias != nullptr ? V::broadcast(bias[r]) : V::zero();
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[v] = start;
  }

  // PERF: a body of its own without activation; with the branch, the same loop is 2 % slower.
  template <int NV, bool kActivates>
  static void convolve_rows(const CellRows& cell, const T* values, const int32_t* offsets,
                            const T* panel, const TileRows<const T>& from, const T* bias,
                            Activation activation, const TileRows<T>& to) {
    for (int64_t r = 0; r < cell.rows; ++r) {
      // SAFETY: the buffer of starts ends in kPrefetchRows spare elements (walk.h).
      prefetch_row(values, offsets, cell.starts[r + kPrefetchRows], cell.lines);
      Reg sum[NV];
      first_sums<NV>(from, bias, r, sum);
      const auto value = [&](int32_t j) { return values[j]; };
      const auto place = [&](int32_t j) { return panel + offsets[j]; };
      add_entries<V, NV>(cell.starts[r], cell.ends[r], value, place, sum);
      if constexpr (kActivates) activate<NV>(activation, sum);
      store_row<NV>(to, r, sum);
    }
  }

  // PERF: `sum` lives in registers and must not be pointed to, so GELU, whose body is large, gets a
  // copy. Applied to rows that are stored already, either costs twice as much.
  template <int NV>
  static SPARSEKERN_INLINE void activate(Activation activation, Reg* sum) {
    if (activation == Activation::kRelu) {
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) sum[v] = V::max(V::zero(), sum[v]);
      return;
    }
    Reg copy[NV];
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) copy[v] = sum[v];
    Activate<V>::apply(copy, NV, activation);
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[v] = copy[v];
  }

  template <int NV>
  static SPARSEKERN_INLINE Reg dot(const Reg* row, const T* x) {
    Reg sum = V::mul_add(row[0], V::load(x), V::zero());
    SPARSEKERN_UNROLL(8)
    for (int v = 1; v < NV; ++v) sum = V::mul_add(row[v], V::load(x + v * W), sum);
    return sum;
  }

  template <int NV>
  static void dvalues_rows(const CellRows& cell, const int32_t* offsets, const T* panel,
                           const TileRows<const T>& rows, bool accumulate, T* gradient) {
    for (int64_t r = 0; r < cell.rows; ++r) {
      prefetch_row(gradient, offsets, cell.starts[r + kPrefetchRows], cell.lines);
      Reg row[NV];
      load_row<NV>(rows, r, row);
      const int64_t end = cell.ends[r];
      for (int64_t j = cell.starts[r]; j < end; j += 4) {
        // PERF: the last group of a row computes what lies behind the row and stores only its own:
        // branches on the number of entries left cost up to 15 % (Zen 4, 6 to 20 entries a row).
        const int64_t left = cell.nnz - j;  // SAFETY: nothing is read behind the last entry
        Reg sum[4];
        SPARSEKERN_UNROLL(4)
        for (int i = 0; i < 4; ++i) sum[i] = dot<NV>(row, panel + offsets[j + (i < left ? i : 0)]);
        V::reduce4(sum, end - j, accumulate, gradient + j);
      }
    }
  }

  // sum += value * x, and returns row . x.
  template <int NV>
  static SPARSEKERN_INLINE Reg add_and_dot(T value, const T* x, const Reg* row, Reg* sum) {
    const Reg weight = V::broadcast(value);
    Reg product = V::zero();
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) {
      const Reg loaded = V::load(x + v * W);
      sum[v] = V::mul_add(weight, loaded, sum[v]);
      product = V::mul_add(row[v], loaded, product);
    }
    return product;
  }

  template <int NV>
  static void both_rows(const CellRows& cell, const T* values, const int32_t* offsets,
                        const T* panel, const TileRows<const T>& rows, bool accumulate, T* gradient,
                        const TileRows<const T>& from, const TileRows<T>& to) {
    for (int64_t r = 0; r < cell.rows; ++r) {
      prefetch_row(values, offsets, cell.starts[r + kPrefetchRows], cell.lines);
      Reg row[NV], sum[NV];
      load_row<NV>(rows, r, row);
      first_sums<NV>(from, nullptr, r, sum);
      const int64_t end = cell.ends[r];
      int64_t j = cell.starts[r];
      Reg product[4];
      for (; j + 4 <= end; j += 4) {
        SPARSEKERN_UNROLL(4)
        for (int i = 0; i < 4; ++i)
          product[i] = add_and_dot<NV>(values[j + i], panel + offsets[j + i], row, sum);
        V::reduce4(product, 4, accumulate, gradient + j);
      }
      if (j < end) {
        product[0] = add_and_dot<NV>(values[j], panel + offsets[j], row, sum);
        product[1] = product[2] = product[3] = V::zero();
        if (j + 1 < end)
          product[1] = add_and_dot<NV>(values[j + 1], panel + offsets[j + 1], row, sum);
        if (j + 2 < end)
          product[2] = add_and_dot<NV>(values[j + 2], panel + offsets[j + 2], row, sum);
        V::reduce4(product, end - j, accumulate, gradient + j);
      }
      store_row<NV>(to, r, sum);
    }
  }

  template <int count>
  struct Vectors {
    static constexpr int kCount = count;
  };

  // Calls body(Vectors<count>(), first lane) for pieces of a tile that registers hold.
  template <typename Body>
  static SPARSEKERN_INLINE void by_width(int width, const Body& body) {
    if (width == 128) {
      for (int lane = 0; lane < 128; lane += kRegisterWidth)
        body(Vectors<kRegisterWidth / W>(), lane);
    } else if (width == 64) {
      body(Vectors<64 / W>(), 0);
    } else if (width == 32) {
      body(Vectors<32 / W>(), 0);
    } else {
      body(Vectors<16 / W>(), 0);
    }
  }

  template <typename Rows>
  static Rows from_lane(const Rows& rows, int lane) {
    return {rows.data, rows.stride, rows.lanes + lane / 16,
            rows.counts != nullptr ? rows.counts + lane / 16 : nullptr};
  }

  static void convolve(const CellRows& cell, const T* values, const int32_t* offsets,
                       const T* panel, int width, const TileRows<const T>& from, const T* bias,
                       Activation activation, const TileRows<T>& to) {
    by_width(width, [&](auto vectors, int lane) {
      constexpr int NV = decltype(vectors)::kCount;
      const auto rows =
          activation == Activation::kNone ? convolve_rows<NV, false> : convolve_rows<NV, true>;
      rows(cell, values, offsets, panel + lane, from_lane(from, lane), bias, activation,
           from_lane(to, lane));
    });
  }

  static void dvalues(const CellRows& cell, const int32_t* offsets, const T* panel, int width,
                      const TileRows<const T>& rows, bool accumulate, T* gradient) {
    by_width(width, [&](auto vectors, int lane) {
      dvalues_rows<decltype(vectors)::kCount>(cell, offsets, panel + lane, from_lane(rows, lane),
                                              accumulate || lane > 0, gradient);
    });
  }

  static void both(const CellRows& cell, const T* values, const int32_t* offsets, const T* panel,
                   int width, const TileRows<const T>& rows, bool accumulate, T* gradient,
                   const TileRows<const T>& from, const TileRows<T>& to) {
    if constexpr (W >= 16) {
      by_width(width, [&](auto vectors, int) {
        both_rows<decltype(vectors)::kCount>(cell, values, offsets, panel, rows, accumulate,
                                             gradient, from, to);
      });
    } else {
      dvalues(cell, offsets, panel, width, rows, accumulate, gradient);
      convolve(cell, values, offsets, panel, width, from, nullptr, Activation::kNone, to);
    }
  }
};
