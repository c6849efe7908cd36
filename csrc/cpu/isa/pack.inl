// Formula    panel[c][b] = x[b][c], or that where !(y[b][c] <= 0), else zero;
//            y[b][r] = activation(tile[r][b] + bias[r]).
// Mapping    blocks of W x W elements transposed in registers (W = vector width).
// Tile       batch elements or pixels, a multiple of 16, by all columns (pack) or some rows (unpack).
// Arithmetic 16-bit activations are widened on load and rounded to nearest even on store.
// Alignment  none required; the tail of the columns is done row by row.
// Contract   PanelKernels in kernels.h.
#pragma once
#include "activation.inl"

template <typename V, bool kGated, typename E, typename T>
static void pack_as(const E* x, int64_t stride, const E* y, int64_t y_stride, int64_t batch,
                    int64_t columns, int64_t lanes, int64_t width, T* panel) {
  constexpr int W = V::kWidth;
  const int64_t whole = columns - columns % W;
  for (int64_t lane = 0; lane < lanes; lane += W) {
    const int64_t rows = batch - lane < W ? batch - lane : W;  // may be zero or negative
    const E* source = x + lane * stride;
    const E* gate = kGated ? y + lane * y_stride : nullptr;
    for (int64_t c = 0; c < whole; c += W) {
      typename V::Reg r[W];
      SPARSEKERN_UNROLL(16)
      for (int i = 0; i < W; ++i) {
        r[i] = i < rows ? V::load(source + i * stride + c) : V::zero();
        if constexpr (kGated)
          if (i < rows) r[i] = V::gate(r[i], V::load(gate + i * y_stride + c));
      }
      V::transpose(r);
      SPARSEKERN_UNROLL(16)
      for (int i = 0; i < W; ++i) V::store(panel + (c + i) * width + lane, r[i]);
    }
    for (int64_t c = whole; c < columns; ++c)
      for (int i = 0; i < W; ++i) {
        bool open = i < rows;
        if constexpr (kGated) open = open && !(widen(gate[i * y_stride + c]) <= T(0));
        panel[c * width + lane + i] = open ? widen(source[i * stride + c]) : T(0);
      }
  }
}

template <typename V, typename E, typename T>
static void unpack_as(const T* tile, const T* bias, int64_t rows, int64_t batch, int width,
                      Activation activation, E* y, int64_t stride) {
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
      Activate<V>::apply(r, int(count), activation);
      for (int i = 0; i < count; ++i) V::store(target + i * stride + r0, r[i]);
    }
    for (int64_t r = whole; r < rows; ++r) {
      typename V::Reg row = V::load(tile + r * width + lane);
      if (bias != nullptr) row = V::add(row, V::broadcast(bias[r]));
      Activate<V>::apply(&row, 1, activation);
      T lanes[W];
      V::store(lanes, row);
      for (int i = 0; i < count; ++i) narrow(lanes[i], target + i * stride + r);
    }
  }
}

template <typename V>
struct Pack {
  using T = typename V::Element;

  template <bool kGated>
  static void pack_rows(const void* x, Dtype dtype, int64_t stride, const void* y, int64_t y_stride,
                        int64_t batch, int64_t columns, int64_t lanes, int64_t width, T* panel) {
    const auto as = [&](auto* source) {
      pack_as<V, kGated>(source, stride, static_cast<decltype(source)>(y), y_stride, batch, columns,
                         lanes, width, panel);
    };
    if constexpr (sizeof(T) == sizeof(double)) {
      as(static_cast<const double*>(x));
    } else if (dtype == Dtype::kBFloat16) {
      as(static_cast<const BFloat16*>(x));
    } else if (dtype == Dtype::kHalf) {
      as(static_cast<const Half*>(x));
    } else {
      as(static_cast<const float*>(x));
    }
  }

  static void pack(const void* x, Dtype dtype, int64_t stride, int64_t batch, int64_t columns,
                   int64_t lanes, int64_t width, T* panel) {
    pack_rows<false>(x, dtype, stride, nullptr, 0, batch, columns, lanes, width, panel);
  }

  static void pack_gated(const void* x, Dtype dtype, int64_t stride, const void* y,
                         int64_t y_stride, int64_t batch, int64_t columns, int width, T* panel) {
    pack_rows<true>(x, dtype, stride, y, y_stride, batch, columns, width, width, panel);
  }

  static void unpack(const T* tile, const T* bias, int64_t rows, int64_t batch, int width,
                     Activation activation, void* y, Dtype dtype, int64_t stride) {
    const auto as = [&](auto* target) {
      unpack_as<V>(tile, bias, rows, batch, width, activation, target, stride);
    };
    if constexpr (sizeof(T) == sizeof(double)) {
      as(static_cast<double*>(y));
    } else if (dtype == Dtype::kBFloat16) {
      as(static_cast<BFloat16*>(y));
    } else if (dtype == Dtype::kHalf) {
      as(static_cast<Half*>(y));
    } else {
      as(static_cast<float*>(y));
    }
  }
};
