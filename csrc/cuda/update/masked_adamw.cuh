// Formula    g = factor * grad + l2 * p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//            p = decay * p - step_size * m / (sqrt(v) * root_factor + eps)   where the bit is 1.
// Mapping    a block takes a chunk of 8192 weights of one tensor, a thread 8 units of 4; a unit that
//            is masked is not read, so sectors of 8 masked floats never leave memory.
// Arithmetic float, double for double, as the CPU's bodies; constants in double.
// Alignment  none required; 16 bytes of state, and 4 elements of the others, make loads whole.
// Contract   sparsekern/ops/update/masked_adamw.py. 28 bytes a kept float weight: memory decides, while
//            some 50 instructions a weight run (by its data sheet an H100 issues 170 meanwhile).
#pragma once
#include <cmath>

#include "unit.cuh"

namespace sparsekern {

struct AdamwOptions {
  Scalar factor, found_inf, rate;
  double beta1, beta2, eps, weight_decay;
  bool decoupled, maximize, clear;
};

// Rounded to the type of the arithmetic, as torch's fused optimisers round them.
template <typename T>
struct AdamwConstants {
  T factor;         // of the gradient; negative to maximise
  T decay;          // of the weight: 1 - lr * weight_decay, or 1
  T l2;             // of the weight within the gradient
  T beta1, beta2;   // of the moments
  T grad_weight;    // 1 - beta1
  T square_weight;  // 1 - beta2
  T minus_step;     // -lr / (1 - beta1^t)
  T root_factor;    // 1 / sqrt(1 - beta2^t)
  T eps;
  bool clear;  // masked weights become zero, else they stay
  bool skip;   // nothing changes at all
};

template <typename E, typename G>
struct AdamwStep {
  using Param = E;
  using T = Compute<E>;
  using Options = AdamwOptions;
  using Constants = AdamwConstants<T>;

  static SPARSEKERN_HOST_DEVICE Constants constants(const Options& o, const Row& row) {
    const double lr = o.rate.read(), step = row.step.read(), factor = o.factor.read();
    Constants c;
    c.factor = T(o.maximize ? -factor : factor);
    c.decay = T(o.decoupled ? 1 - lr * o.weight_decay : 1.0);
    c.l2 = T(o.decoupled ? 0.0 : o.weight_decay);
    c.beta1 = T(o.beta1);
    c.beta2 = T(o.beta2);
    c.grad_weight = T(1 - o.beta1);
    c.square_weight = T(1 - o.beta2);
    c.minus_step = T(-lr / (1 - std::pow(o.beta1, step)));
    c.root_factor = T(1 / std::sqrt(1 - std::pow(o.beta2, step)));
    c.eps = T(o.eps);
    c.clear = o.clear;
    c.skip = o.found_inf.read() != 0;
    return c;
  }

  static SPARSEKERN_HOST_DEVICE void unit(const Row& row, const Place& place, const Constants& c) {
    Unit<E> weights = load<E>(row.param, place);
    const Unit<G> gradients = load<G>(row.grad, place);
    Unit<T> first = load<T>(row.first, place);
    Unit<T> second = load<T>(row.second, place);
    SPARSEKERN_UNROLL(4)
    for (int k = 0; k < kUnit; ++k) {
      const T weight = to_compute(weights.at[k]);
      T g = T(to_compute(gradients.at[k])) * c.factor;
      if (c.l2 != 0) g = std::fma(weight, c.l2, g);
      const T m = std::fma(first.at[k], c.beta1, g * c.grad_weight);
      const T v = std::fma(second.at[k], c.beta2, g * g * c.square_weight);
      const T root = std::fma(std::sqrt(v), c.root_factor, c.eps);
      const E moved = from_compute<E>(std::fma(weight, c.decay, c.minus_step * m / root));
      const E masked = c.clear ? E{} : weights.at[k];
      weights.at[k] = place.keeps(k) ? moved : masked;
      first.at[k] = place.keeps(k) ? m : first.at[k];
      second.at[k] = place.keeps(k) ? v : second.at[k];
    }
    store(row.param, place, weights);
    store(row.first, place, first);
    store(row.second, place, second);
    store_copy(row, place, weights);
  }
};

}  // namespace sparsekern
