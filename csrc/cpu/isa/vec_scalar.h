// A "vector" of plain C++: what every platform can run, and the double-precision body.
#pragma once
#include <cstdint>

#include "../../common/dtype.h"
#include "../../common/inline.h"

namespace sparsekern::scalar {

// Four lanes, for batches of at most four and for gathers.
template <typename T>
struct FourOf {
  static constexpr int kWidth = 4;
  static constexpr int kMultiplies = 1;  // that start in one cycle
  using Element = T;
  struct Reg {
    T lane[kWidth];
  };

  static SPARSEKERN_INLINE Reg zero() { return Reg{}; }
  static SPARSEKERN_INLINE Reg broadcast(T value) { return {{value, value, value, value}}; }
  static SPARSEKERN_INLINE Reg load(const T* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static SPARSEKERN_INLINE void store(T* p, const Reg& r) {
    for (int i = 0; i < kWidth; ++i) p[i] = r.lane[i];
  }
  static SPARSEKERN_INLINE Reg gather(const T* x, const int32_t* col) {
    return {{x[col[0]], x[col[1]], x[col[2]], x[col[3]]}};
  }
  static SPARSEKERN_INLINE Reg mul_add(const Reg& a, const Reg& b, const Reg& c) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return r;
  }
  // c + a b in the first lane.
  static SPARSEKERN_INLINE Reg mul_add_one(T a, T b, const Reg& c) {
    Reg r = c;
    r.lane[0] += a * b;
    return r;
  }
  static SPARSEKERN_INLINE T sum(const Reg& r) {
    return (r.lane[0] + r.lane[2]) + (r.lane[1] + r.lane[3]);
  }
};

template <typename T>
struct VecOf {
  static constexpr int kWidth = 8;
  using Four = FourOf<T>;
  using Eight = VecOf;
  static constexpr int kMultiplies = 1;  // that start in one cycle
  using Element = T;
  struct Reg {
    T lane[kWidth];
  };

  static SPARSEKERN_INLINE Reg zero() { return Reg{}; }
  static SPARSEKERN_INLINE Reg broadcast(T value) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = value;
    return r;
  }
  template <typename E>
  static SPARSEKERN_INLINE Reg load(const E* p) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = widen(p[i]);
    return r;
  }
  template <typename E>
  static SPARSEKERN_INLINE void store(E* p, const Reg& r) {
    for (int i = 0; i < kWidth; ++i) narrow(r.lane[i], p + i);
  }
  // Lanes [first, last) of a vector; bounds beyond the vector are cut off.
  struct Lanes {
    int first, last;
  };
  static SPARSEKERN_INLINE Lanes lanes(int first, int last) { return {first, last}; }
  static SPARSEKERN_INLINE Reg load(const T* p, Lanes lanes) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = lanes.first <= i && i < lanes.last ? p[i] : T(0);
    return r;
  }
  // p[0], p[2], p[4], ...; `low` and `high` say which of the 16 elements may be read.
  static SPARSEKERN_INLINE Reg load_even(const T* p, Lanes low, Lanes high) {
    const Reg a = load(p, low), b = load(p + kWidth, high);
    Reg r;
    for (int i = 0; i < kWidth / 2; ++i) {
      r.lane[i] = a.lane[2 * i];
      r.lane[kWidth / 2 + i] = b.lane[2 * i];
    }
    return r;
  }
  static SPARSEKERN_INLINE void store_first(T* p, const Reg& r, int count) {
    for (int i = 0; i < count; ++i) p[i] = r.lane[i];
  }
  // p[0], p[2], p[4], ... = the first `count` lanes; what lies between is not touched.
  static SPARSEKERN_INLINE void store_even(T* p, const Reg& r, int count) {
    for (int i = 0; i < count; ++i) p[2 * i] = r.lane[i];
  }
  // x[col[i]] for all lanes, or the first `count` of them and zero.
  static SPARSEKERN_INLINE Reg gather(const T* x, const int32_t* col, int count = kWidth) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = i < count ? x[col[i]] : T(0);
    return r;
  }
  static SPARSEKERN_INLINE T sum(const Reg& r) {
    const T* l = r.lane;
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
  }
  static SPARSEKERN_INLINE Reg add(const Reg& a, const Reg& b) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] + b.lane[i];
    return r;
  }
  static SPARSEKERN_INLINE Reg mul_add(const Reg& a, const Reg& b, const Reg& c) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return r;
  }
  // Bit i: whether lane i of `a` is above that of `b`, or at least that; never for NaN.
  static SPARSEKERN_INLINE uint64_t above(const Reg& a, const Reg& b) {
    uint64_t bits = 0;
    for (int i = 0; i < kWidth; ++i) bits |= uint64_t(a.lane[i] > b.lane[i]) << i;
    return bits;
  }
  static SPARSEKERN_INLINE uint64_t at_least(const Reg& a, const Reg& b) {
    uint64_t bits = 0;
    for (int i = 0; i < kWidth; ++i) bits |= uint64_t(a.lane[i] >= b.lane[i]) << i;
    return bits;
  }
  static constexpr bool kCompresses = false;
  // Bit i: whether byte i of 64 is not zero.
  static SPARSEKERN_INLINE uint64_t nonzero_bytes(const uint8_t* p) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; ++i) bits |= uint64_t(p[i] != 0) << i;
    return bits;
  }
  static SPARSEKERN_INLINE Reg mul(const Reg& a, const Reg& b) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] * b.lane[i];
    return r;
  }
  static SPARSEKERN_INLINE Reg div(const Reg& a, const Reg& b) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] / b.lane[i];
    return r;
  }
  static SPARSEKERN_INLINE Reg sqrt(const Reg& a) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = square_root(a.lane[i]);
    return r;
  }
  // The larger one; `b` if either is NaN.
  static SPARSEKERN_INLINE Reg max(const Reg& a, const Reg& b) { return where_above(a, b, a, b); }
  // `yes` where a > b, `no` elsewhere and for NaN.
  static SPARSEKERN_INLINE Reg where_above(const Reg& a, const Reg& b, const Reg& yes,
                                           const Reg& no) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = a.lane[i] > b.lane[i] ? yes.lane[i] : no.lane[i];
    return r;
  }
  // `x` where y is above zero or NaN, zero elsewhere.
  static SPARSEKERN_INLINE Reg gate(const Reg& x, const Reg& y) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = y.lane[i] <= T(0) ? T(0) : x.lane[i];
    return r;
  }
  static constexpr bool kMathLibrary = true;  // exp and erfc, lane by lane
  static SPARSEKERN_INLINE Reg exp(const Reg& a) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = exponential(a.lane[i]);
    return r;
  }
  static SPARSEKERN_INLINE Reg erfc(const Reg& a) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = error_complement(a.lane[i]);
    return r;
  }
  // Lane i is chosen where bit i of `word` is 1; higher bits do not matter.
  using Chosen = uint64_t;
  static SPARSEKERN_INLINE Chosen chosen(uint64_t word) { return word; }
  static SPARSEKERN_INLINE Reg select(Chosen chosen, const Reg& yes, const Reg& no) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = (chosen >> i) & 1u ? yes.lane[i] : no.lane[i];
    return r;
  }
  static SPARSEKERN_INLINE void transpose(Reg* r) {
    for (int i = 0; i < kWidth; ++i)
      for (int j = 0; j < i; ++j) {
        const T swapped = r[i].lane[j];
        r[i].lane[j] = r[j].lane[i];
        r[j].lane[i] = swapped;
      }
  }
  // p[i] (+)= sum over lanes of r[i] for the first `count` of four vectors.
  static SPARSEKERN_INLINE void reduce4(const Reg* r, int64_t count, bool accumulate, T* p) {
    for (int i = 0; i < 4 && i < count; ++i) {
      const T* l = r[i].lane;
      const T sum = ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]));
      p[i] = accumulate ? p[i] + sum : sum;
    }
  }

 private:
  static SPARSEKERN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
  static SPARSEKERN_INLINE double square_root(double x) { return __builtin_sqrt(x); }
  static SPARSEKERN_INLINE float exponential(float x) { return __builtin_expf(x); }
  static SPARSEKERN_INLINE double exponential(double x) { return __builtin_exp(x); }
  static SPARSEKERN_INLINE float error_complement(float x) { return __builtin_erfcf(x); }
  static SPARSEKERN_INLINE double error_complement(double x) { return __builtin_erfc(x); }
};

}  // namespace sparsekern::scalar
