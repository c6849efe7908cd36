// Formula    tile[R * out + o][:] = sum_j sum_i w_j[o][i] * panel[col[j] * unit + i * pitch + :]   over the
//            blocks j of row R of blocks.
// Mapping    a few outputs of a row of blocks after the other; their accumulators stay in registers
//            while some 256 of its inputs are walked: NV loads, R broadcasts, R * NV multiply-adds
//            for one input of a block.
// Tile       R outputs x NV vectors of the batch.
// Arithmetic accumulated in T (float or double), in the order of the columns; where a register tile
//            has fewer than 8 sums, even and odd inputs of a block go to sums of their own.
// Alignment  none required.
// Contract   BlockKernels in block_kernels.h.
#pragma once

// PERF: 8 x 2 vectors of 16 lanes and 4 x 2 of 8 fit the registers and have the fewest loads for a
// multiply-add; narrower groups take more of the batch instead.
template <typename V>
constexpr int kMostOutputs = V::kWidth >= 16 ? 8 : 4;
template <typename V, int R>
constexpr int kMostVectors = R == kMostOutputs<V> ? 2 : 4;

template <typename V, int R, int NV, int kStride>
static SPARSEKERN_INLINE void add_input(const typename V::Element* w, int64_t stride,
                                        const typename V::Element* x,
                                        typename V::Reg (&sum)[R][NV]) {
  typename V::Reg xs[NV];
  SPARSEKERN_UNROLL(8)
  for (int v = 0; v < NV; ++v) xs[v] = V::load(x + v * V::kWidth);
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    const typename V::Reg weight = V::broadcast(w[r * (kStride > 0 ? kStride : stride)]);
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[r][v] = V::mul_add(weight, xs[v], sum[r][v]);
  }
}

// Inputs of one running sum; longer ones would round too often. PERF: adding up in memory that
// seldom costs no time that can be measured.
constexpr int64_t kInputsTogether = 256;

// The blocks [begin, end) of one row for R outputs and NV vectors of the batch; kStride = 0: a stride
// known at run time.
template <typename V, int R, int NV, int kStride>
static SPARSEKERN_INLINE void bsr_blocks(const BlockMatrix<typename V::Element>& m, int32_t begin,
                                         int32_t end, int64_t output,
                                         const typename V::Element* panel, int64_t unit,
                                         int64_t pitch, int width, bool accumulate,
                                         typename V::Element* tile) {
  using T = typename V::Element;
  constexpr bool kTwo = R * NV < 8;
  typename V::Reg sum[R][NV], odd[R][NV];
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[r][v] = odd[r][v] = V::zero();
  }
  const int64_t size = m.out * m.in, first = output * m.out_stride, step = m.in_stride;
  for (int32_t j = begin; j < end; ++j) {
    const T* w = m.values + (m.perm != nullptr ? m.perm[j] : j) * size + first;
    const T* x = panel + m.col[j] * unit;
    int64_t i = 0;
    if constexpr (kTwo) {
      for (; i + 2 <= m.in; i += 2, w += 2 * step, x += 2 * pitch) {
        add_input<V, R, NV, kStride>(w, m.out_stride, x, sum);
        add_input<V, R, NV, kStride>(w + step, m.out_stride, x + pitch, odd);
      }
    }
    for (; i < m.in; ++i, w += step, x += pitch)
      add_input<V, R, NV, kStride>(w, m.out_stride, x, sum);
  }
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) {
      typename V::Reg total = kTwo ? V::add(sum[r][v], odd[r][v]) : sum[r][v];
      T* target = tile + r * width + v * V::kWidth;
      if (accumulate) total = V::add(V::load(target), total);
      V::store(target, total);
    }
  }
}

template <typename V, int R, int NV, int kStride>
static void bsr_outputs(const BlockMatrix<typename V::Element>& m, int64_t row, int64_t output,
                        const typename V::Element* panel, int64_t unit, int64_t pitch, int width,
                        typename V::Element* tile) {
  const int32_t first = m.crow[row], last = m.crow[row + 1];
  const int32_t together = int32_t(m.in < kInputsTogether ? kInputsTogether / m.in : 1);
  int32_t begin = first;
  do {
    const int32_t end = last - begin > together ? begin + together : last;
    bsr_blocks<V, R, NV, kStride>(m, begin, end, output, panel, unit, pitch, width, begin > first,
                                  tile);
    begin = end;
  } while (begin < last);
}

template <typename V, int R, int kStride>
static void bsr_lanes(const BlockMatrix<typename V::Element>& m, int64_t row, int64_t output,
                      const typename V::Element* panel, int64_t unit, int64_t pitch, int width,
                      typename V::Element* tile) {
  constexpr int kMost = kMostVectors<V, R>, W = V::kWidth;
  if (width >= kMost * W) {
    for (int lane = 0; lane < width; lane += kMost * W)
      bsr_outputs<V, R, kMost, kStride>(m, row, output, panel + lane, unit, pitch, width,
                                        tile + lane);
  } else if (kMost > 2 && width == 2 * W) {
    bsr_outputs < V, R,
        kMost<2 ? kMost : 2, kStride>(m, row, output, panel, unit, pitch, width, tile);
  } else {
    bsr_outputs<V, R, 1, kStride>(m, row, output, panel, unit, pitch, width, tile);
  }
}

template <typename V, int kStride>
static void bsr_row(const BlockMatrix<typename V::Element>& m, int64_t row,
                    const typename V::Element* panel, int64_t unit, int64_t pitch, int width,
                    typename V::Element* tile) {
  constexpr int kMost = kMostOutputs<V>;
  int64_t o = 0;
  for (; o + kMost <= m.out; o += kMost)
    bsr_lanes<V, kMost, kStride>(m, row, o, panel, unit, pitch, width, tile + o * width);
  if (kMost > 4 && o + 4 <= m.out) {
    bsr_lanes<V, 4, kStride>(m, row, o, panel, unit, pitch, width, tile + o * width);
    o += 4;
  }
  if (o + 2 <= m.out) {
    bsr_lanes<V, 2, kStride>(m, row, o, panel, unit, pitch, width, tile + o * width);
    o += 2;
  }
  if (o < m.out) bsr_lanes<V, 1, kStride>(m, row, o, panel, unit, pitch, width, tile + o * width);
}

template <typename V>
struct BsrSpmm {
  using T = typename V::Element;

  static void spmm(const BlockMatrix<T>& m, int64_t first, int64_t last, const T* panel,
                   int64_t unit, int64_t pitch, int width, T* tile) {
    const auto body = m.out_stride == 1    ? bsr_row<V, 1>
                      : m.out_stride == 4  ? bsr_row<V, 4>
                      : m.out_stride == 8  ? bsr_row<V, 8>
                      : m.out_stride == 16 ? bsr_row<V, 16>
                      : m.out_stride == 32 ? bsr_row<V, 32>
                                           : bsr_row<V, 0>;
    for (int64_t row = first; row < last; ++row)
      body(m, row, panel, unit, pitch, width, tile + (row - first) * m.out * width);
  }
};
