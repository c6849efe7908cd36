// Formula    panel[c][b] = x[b][c];  y[b][r] = tile[r][b] + bias[r].
// Mapping    blocks of W x W elements transposed in registers (W = vector width).
// Tile       batch elements or pixels, a multiple of 16, by all columns (pack) or some rows (unpack).
// Arithmetic 16-bit activations are widened on load and rounded to nearest even on store.
// Alignment  none required; the tail of the columns is done element by element.
// Contract   PanelKernels in kernels.h.
#pragma once

template <typename V, typename E, typename T>
static void pack_as(const E* x, int64_t stride, int64_t batch, int64_t columns, int64_t lanes,
                    int64_t width, T* panel) {
  constexpr int W = V::kWidth;
  const int64_t whole = columns - columns % W;
  for (int64_t lane = 0; lane < lanes; lane += W) {
    const int64_t rows = batch - lane < W ? batch - lane : W;  // may be zero or negative
    const E* source = x + lane * stride;
    for (int64_t c = 0; c < whole; c += W) {
      typename V::Reg r[W];
      SPARSEKERN_UNROLL(16)
      for (int i = 0; i < W; ++i) r[i] = i < rows ? V::load(source + i * stride + c) : V::zero();
      V::transpose(r);
      SPARSEKERN_UNROLL(16)
      for (int i = 0; i < W; ++i) V::store(panel + (c + i) * width + lane, r[i]);
    }
    for (int64_t c = whole; c < columns; ++c)
      for (int i = 0; i < W; ++i)
        panel[c * width + lane + i] = i < rows ? widen(source[i * stride + c]) : T(0);
  }
}

template <typename V, typename E, typename T>
static void unpack_as(const T* tile, const T* bias, int64_t rows, int64_t batch, int width, E* y,
                      int64_t stride) {
  constexpr int W = V::kWidth;
  const int64_t whole = rows - rows % W;
  for (int lane = 0; lane < batch; lane += W) {
    const int64_t count = batch - lane < W ? batch - lane : W;
    E* target = y + lane * stride;
    for (int64_t r0 = 0; r0 < whole; r0 += W) {
      typename V::Reg r[W];
      SPARSEKERN_UNROLL(16)
      for (int i = 0; i < W; ++i) r[i] = V::load(tile + (r0 + i) * width + lane);
      V::transpose(r);
      if (bias != nullptr) {
        const typename V::Reg shift = V::load(bias + r0);
        SPARSEKERN_UNROLL(16)
        for (int i = 0; i < W; ++i) r[i] = V::add(r[i], shift);
      }
      for (int i = 0; i < count; ++i) V::store(target + i * stride + r0, r[i]);
    }
    for (int64_t r = whole; r < rows; ++r) {
      const T shift = bias != nullptr ? bias[r] : T(0);
      for (int i = 0; i < count; ++i)
        narrow(tile[r * width + lane + i] + shift, target + i * stride + r);
    }
  }
}

template <typename V>
struct Pack {
  using T = typename V::Element;

  static void pack(const void* x, Dtype dtype, int64_t stride, int64_t batch, int64_t columns,
                   int64_t lanes, int64_t width, T* panel) {
    if constexpr (sizeof(T) == sizeof(double)) {
      pack_as<V>(static_cast<const double*>(x), stride, batch, columns, lanes, width, panel);
    } else if (dtype == Dtype::kBFloat16) {
      pack_as<V>(static_cast<const BFloat16*>(x), stride, batch, columns, lanes, width, panel);
    } else if (dtype == Dtype::kHalf) {
      pack_as<V>(static_cast<const Half*>(x), stride, batch, columns, lanes, width, panel);
    } else {
      pack_as<V>(static_cast<const float*>(x), stride, batch, columns, lanes, width, panel);
    }
  }

  static void unpack(const T* tile, const T* bias, int64_t rows, int64_t batch, int width, void* y,
                     Dtype dtype, int64_t stride) {
    if constexpr (sizeof(T) == sizeof(double)) {
      unpack_as<V>(tile, bias, rows, batch, width, static_cast<double*>(y), stride);
    } else if (dtype == Dtype::kBFloat16) {
      unpack_as<V>(tile, bias, rows, batch, width, static_cast<BFloat16*>(y), stride);
    } else if (dtype == Dtype::kHalf) {
      unpack_as<V>(tile, bias, rows, batch, width, static_cast<Half*>(y), stride);
    } else {
      unpack_as<V>(tile, bias, rows, batch, width, static_cast<float*>(y), stride);
    }
  }
};
