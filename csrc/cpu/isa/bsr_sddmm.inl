// Formula    gradient_j[r][c] (+)= sum_b y[r][b] * x[col[j] * in + c][b]   over all tiles.
// Mapping    sddmm_vectors: R outputs x C vectors of inputs, of one block or of neighbours in a row;
//            for each batch element C loads, R broadcasts, C R multiply-adds, and no sum over lanes.
//            sddmm, for narrow blocks: R x 4 sums over the batch in lanes, folded at the
//            end of all tiles.
// Tile       all given tiles for one block before the next; `accumulate` adds their sum at the end.
// Arithmetic products and sums in T (float or double).
// Alignment  none required.
// Contract   BlockKernels in block_kernels.h.
#pragma once

template <typename V, int R, int C, int kWidth>
static SPARSEKERN_INLINE void add_batch(const typename V::Element* y,
                                        const typename V::Element* const (&x)[C], int64_t batch,
                                        typename V::Reg (&sum)[R][C]) {
  for (int64_t b = 0; b < batch; ++b) {
    typename V::Reg xs[C];
    SPARSEKERN_UNROLL(8)
    for (int c = 0; c < C; ++c) xs[c] = V::load(x[c] + b * V::kWidth);
    SPARSEKERN_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const typename V::Reg factor = V::broadcast(y[r * kWidth + b]);
      SPARSEKERN_UNROLL(8)
      for (int c = 0; c < C; ++c) sum[r][c] = V::mul_add(factor, xs[c], sum[r][c]);
    }
  }
}

// R outputs from `output` on, and the C vectors of inputs whose numbers are in `vector`.
template <typename V, int R, int C>
static void sample_vectors(const BlockTile<typename V::Element>* tiles, int64_t tile_count,
                           int64_t output, const int64_t (&vector)[C], int64_t stride,
                           bool accumulate, typename V::Element* const (&gradient)[C]) {
  using T = typename V::Element;
  typename V::Reg sum[R][C];
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
  }
  for (int64_t t = 0; t < tile_count; ++t) {
    const BlockTile<T>& tile = tiles[t];
    const T* y = tile.y + output * tile.width;
    const T* x[C];
    for (int c = 0; c < C; ++c) x[c] = tile.x + vector[c] * tile.width * V::kWidth;
    if (tile.width == 64) {
      add_batch<V, R, C, 64>(y, x, tile.batch, sum);
    } else if (tile.width == 32) {
      add_batch<V, R, C, 32>(y, x, tile.batch, sum);
    } else {
      add_batch<V, R, C, 16>(y, x, tile.batch, sum);
    }
  }
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int c = 0; c < C; ++c) {
      typename V::Element* g = gradient[c] + r * stride;
      V::store(g, accumulate ? V::add(V::load(g), sum[r][c]) : sum[r][c]);
    }
  }
}

template <int C>
struct CountOf {
  static constexpr int kCount = C;
};

// Vectors of inputs for R outputs: as many as make at least 8 sums, which hide the latency of the
// multiply-add, and fit the registers.
template <typename V, int R>
constexpr int kSumVectors = V::kWidth >= 16 ? (R == 8   ? 2
                                               : R == 1 ? 8
                                                        : 4)
                                            : (R == 4 ? 2 : 4);

template <typename V, int R>
static void sample_outputs(const BlockTile<typename V::Element>* tiles, int64_t tile_count,
                           const int32_t* col, int64_t count, int64_t output, int64_t out,
                           int64_t in, bool accumulate, typename V::Element* gradient) {
  using T = typename V::Element;
  const int64_t per_block = in / V::kWidth, vectors = count * per_block;
  const auto number = [&](int64_t v) { return col[v / per_block] * per_block + v % per_block; };
  const auto target = [&](int64_t v) -> T* {
    return gradient + (v / per_block * out + output) * in + v % per_block * V::kWidth;
  };
  const auto sample = [&](auto count_of, int64_t first) {
    constexpr int C = decltype(count_of)::kCount;
    int64_t numbers[C];
    T* targets[C];
    for (int c = 0; c < C; ++c) {
      numbers[c] = number(first + c);
      targets[c] = target(first + c);
    }
    sample_vectors<V, R, C>(tiles, tile_count, output, numbers, in, accumulate, targets);
  };
  constexpr int kMost = kSumVectors<V, R>;
  int64_t v = 0;
  for (; v + kMost <= vectors; v += kMost) sample(CountOf<kMost>(), v);
  if constexpr (kMost > 4) {
    if (v + 4 <= vectors) {
      sample(CountOf<4>(), v);
      v += 4;
    }
  }
  for (; v + 2 <= vectors; v += 2) sample(CountOf<2>(), v);
  if (v < vectors) sample(CountOf<1>(), v);
}

// R outputs from `output` on, and four inputs from `input` on, of which the block has at least one.
template <typename V, int R>
static void sample_lanes(const BlockTile<typename V::Element>* tiles, int64_t tile_count,
                         int64_t column, int64_t output, int64_t input, int64_t in, bool accumulate,
                         typename V::Element* gradient) {
  using T = typename V::Element;
  typename V::Reg sum[R][4];
  SPARSEKERN_UNROLL(4)
  for (int r = 0; r < R; ++r) {
    SPARSEKERN_UNROLL(4)
    for (int c = 0; c < 4; ++c) sum[r][c] = V::zero();
  }
  const int64_t left = in - input;
  for (int64_t t = 0; t < tile_count; ++t) {
    const BlockTile<T>& tile = tiles[t];
    const T* y = tile.y + output * tile.y_pitch;
    const T* x[4];
    // SAFETY: inputs that the block does not have are computed from its first and not stored.
    for (int c = 0; c < 4; ++c)
      x[c] = tile.x + column * tile.unit + (input + (c < left ? c : 0)) * tile.x_pitch;
    for (int64_t lane = 0; lane < tile.width; lane += V::kWidth) {
      typename V::Reg ys[R];
      SPARSEKERN_UNROLL(4)
      for (int r = 0; r < R; ++r) ys[r] = V::load(y + r * tile.y_pitch + lane);
      SPARSEKERN_UNROLL(4)
      for (int c = 0; c < 4; ++c) {
        const typename V::Reg xs = V::load(x[c] + lane);
        SPARSEKERN_UNROLL(4)
        for (int r = 0; r < R; ++r) sum[r][c] = V::mul_add(ys[r], xs, sum[r][c]);
      }
    }
  }
  SPARSEKERN_UNROLL(4)
  for (int r = 0; r < R; ++r)
    V::reduce4(sum[r], left, accumulate, gradient + (output + r) * in + input);
}

template <typename V>
struct BsrSddmm {
  using T = typename V::Element;

  template <typename E>
  static void pack_as(const E* x, int64_t stride, int64_t batch, int64_t vectors, int width,
                      T* panel) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t v = 0; v < vectors; ++v)
        V::store(panel + (v * width + b) * V::kWidth, V::load(x + b * stride + v * V::kWidth));
  }

  static void pack_vectors(const void* x, Dtype dtype, int64_t stride, int64_t batch,
                           int64_t vectors, int width, T* panel) {
    if constexpr (sizeof(T) == sizeof(double)) {
      pack_as(static_cast<const double*>(x), stride, batch, vectors, width, panel);
    } else if (dtype == Dtype::kBFloat16) {
      pack_as(static_cast<const BFloat16*>(x), stride, batch, vectors, width, panel);
    } else if (dtype == Dtype::kHalf) {
      pack_as(static_cast<const Half*>(x), stride, batch, vectors, width, panel);
    } else {
      pack_as(static_cast<const float*>(x), stride, batch, vectors, width, panel);
    }
  }

  static void sddmm_vectors(const BlockTile<T>* tiles, int64_t tile_count, const int32_t* col,
                            int64_t count, int64_t out, int64_t in, bool accumulate, T* gradient) {
    constexpr int kMost = V::kWidth >= 16 ? 8 : 4;
    int64_t o = 0;
    for (; o + kMost <= out; o += kMost)
      sample_outputs<V, kMost>(tiles, tile_count, col, count, o, out, in, accumulate, gradient);
    if (kMost > 4 && o + 4 <= out) {
      sample_outputs<V, 4>(tiles, tile_count, col, count, o, out, in, accumulate, gradient);
      o += 4;
    }
    if (o + 2 <= out) {
      sample_outputs<V, 2>(tiles, tile_count, col, count, o, out, in, accumulate, gradient);
      o += 2;
    }
    if (o < out)
      sample_outputs<V, 1>(tiles, tile_count, col, count, o, out, in, accumulate, gradient);
  }

  static void sddmm(const BlockTile<T>* tiles, int64_t tile_count, const int32_t* col,
                    int64_t count, int64_t out, int64_t in, bool accumulate, T* gradient) {
    constexpr int kMost = V::kWidth >= 16 ? 4 : 2;
    for (int64_t j = 0; j < count; ++j, gradient += out * in) {
      const int64_t column = col[j];
      for (int64_t i = 0; i < in; i += 4) {
        int64_t o = 0;
        for (; o + kMost <= out; o += kMost)
          sample_lanes<V, kMost>(tiles, tile_count, column, o, i, in, accumulate, gradient);
        for (; o < out; ++o)
          sample_lanes<V, 1>(tiles, tile_count, column, o, i, in, accumulate, gradient);
      }
    }
  }
};
