// Formula    relu      max(x, 0), NaN stays NaN;
//            gelu      x P(N <= x), N standard normal;
//            gelu_tanh x / (1 + exp(-2 u)),  u = sqrt(2 / pi) (x + 0.044715 x^3).
// Mapping    vectors in registers, just before they are stored.
// Arithmetic in T. Where V has no mathematical library: P(N <= -a) = exp(-a^2 / 2) p(1 / (1 + 0.225 a))
//            for a >= 0, p of degree 8; error at most 1.3e-7 max(1, |y|), a quarter of torch's own.
// Alignment  none required.
// Contract   PanelKernels in kernels.h.
#pragma once

template <typename V>
struct Activate {
  using T = typename V::Element;
  using Reg = typename V::Reg;

  // Calls body(function), where function(x) is the activation of a vector; not at all for kNone.
  template <typename Body>
  static SPARSEKERN_INLINE void with(Activation activation, const Body& body) {
    if (activation == Activation::kRelu) body([](Reg x) { return V::max(V::zero(), x); });
    if (activation == Activation::kGelu) body([](Reg x) { return gelu(x); });
    if (activation == Activation::kGeluTanh) body([](Reg x) { return gelu_tanh(x); });
  }

  static void apply(Reg* r, int count, Activation activation) {
    with(activation, [&](auto function) {
      for (int i = 0; i < count; ++i) r[i] = function(r[i]);
    });
  }

 private:
  template <int N>
  static SPARSEKERN_INLINE Reg polynomial(const float (&coefficients)[N], Reg x) {
    Reg sum = V::broadcast(coefficients[0]);  // of the highest power
    SPARSEKERN_UNROLL(16)
    for (int i = 1; i < N; ++i) sum = V::mul_add(sum, x, V::broadcast(coefficients[i]));
    return sum;
  }

  // 2^n e^r with n an integer and |r| <= log(2) / 2; e^r within 1e-7. Zero below -87, infinity above
  // 88, whatever for NaN.
  static SPARSEKERN_INLINE Reg exp(Reg x) {
    if constexpr (V::kMathLibrary) {
      return V::exp(x);
    } else {
      // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
      const Reg big = V::broadcast(12582912.0f);
      const Reg shifted = V::mul_add(x, V::broadcast(1.44269504f), big);
      const Reg n = V::add(shifted, V::broadcast(-12582912.0f));
      // log(2) as a number of 9 bits, whose multiples are exact, and what is left.
      Reg r = V::mul_add(n, V::broadcast(-0.693359375f), x);
      r = V::mul_add(n, V::broadcast(2.12194440e-4f), r);
      static constexpr float kPowers[] = {1.3814471e-3f, 8.368781e-3f, 4.1668393e-2f, 0.1666652f,
                                          0.49999994f,   1.0f,         1.0f};
      const Reg y = V::add_exponent(polynomial(kPowers, r), shifted);
      const Reg large = V::broadcast(__builtin_inff());
      return V::where_above(x, V::broadcast(88.0f), large,
                            V::where_above(V::broadcast(-87.0f), x, V::zero(), y));
    }
  }

  // P(N <= -a) for a >= 0.
  static SPARSEKERN_INLINE Reg tail(Reg a) {
    if constexpr (V::kMathLibrary) {
      return V::mul(V::broadcast(T(0.5)),
                    V::erfc(V::mul(a, V::broadcast(T(0.70710678118654752440)))));
    } else {
      static constexpr float kTail[] = {
          -0.09260883927345276f, 0.3795003890991211f,   -0.43759068846702576f,
          0.4582706391811371f,   -0.12721945345401764f, 0.15243646502494812f,
          0.07591275125741959f,  0.09138065576553345f,  -8.189720392692834e-05f};
      const Reg one = V::broadcast(1.0f);
      const Reg r = V::div(one, V::mul_add(a, V::broadcast(0.225f), one));
      return V::mul(exp(V::mul(a, V::mul(a, V::broadcast(-0.5f)))), polynomial(kTail, r));
    }
  }

  static SPARSEKERN_INLINE Reg gelu(Reg x) {
    const Reg minus = V::mul(x, V::broadcast(T(-1)));
    const Reg q = tail(V::max(minus, x));
    const Reg rest = V::mul_add(q, V::broadcast(T(-1)), V::broadcast(T(1)));
    return V::mul(x, V::where_above(x, V::zero(), rest, q));
  }

  static SPARSEKERN_INLINE Reg gelu_tanh(Reg x) {
    // -2 u = x (c + 0.044715 c x^2)
    constexpr T c = T(-1.5957691216057307117597842397375);
    const Reg u =
        V::mul(x, V::mul_add(V::mul(x, x), V::broadcast(T(0.044715) * c), V::broadcast(c)));
    return V::div(x, V::add(V::broadcast(T(1)), exp(u)));
  }
};
