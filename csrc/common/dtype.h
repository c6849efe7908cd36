// Element types that activations may have, and their scalar conversions. Torch-free.
#pragma once
#include <cstdint>
#include <cstring>

namespace sparsekern {

enum class Dtype { kFloat, kDouble, kBFloat16, kHalf };

static inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
}

// Storage-only 16-bit floats: kernels widen on load and round (to nearest even) on store.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// `static inline` on purpose: every ISA's translation unit must keep its own copy, or the linker
// could merge an AVX-512 body into code that runs on a machine without it.
static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

static inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24, exact in float.
  const float magnitude = float(mantissa) * 5.9604644775390625e-8f;
  return bits_to_float(sign | float_to_bits(magnitude));
}

static inline void narrow(float value, float* out) { *out = value; }
static inline void narrow(double value, double* out) { *out = value; }

static inline void narrow(float value, BFloat16* out) {
  uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN stays NaN
    out->bits = uint16_t((bits >> 16) | 0x40u);
    return;
  }
  bits += 0x7fffu + ((bits >> 16) & 1u);
  out->bits = uint16_t(bits >> 16);
}

static inline void narrow(float value, Half* out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN stays NaN
    out->bits = uint16_t(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // rounds to infinity
    out->bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 makes the hardware round the mantissa at 2^-24.
    const float shifted = bits_to_float(magnitude) + 0.5f;
    out->bits = uint16_t(sign | (float_to_bits(shifted) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    out->bits = uint16_t(sign | ((rounded - 0x38000000u) >> 13));
  }
}

}  // namespace sparsekern
