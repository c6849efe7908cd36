// Formula    g = factor * grad + l2 * p;  b = momentum * b + (1 - dampening) g, or g at the start;
//            p = p - lr * (g, b, or g + momentum * b by Nesterov)   where the bit is 1.
// Mapping    a block takes a chunk of 8192 weights of one tensor, a thread 8 units of 4; a unit that
//            is masked is not read.
// Arithmetic float, double for double, as the CPU's bodies.
// Alignment  none required; 16 bytes of state, and 4 elements of the others, make loads whole.
// Contract   sparsekern/ops/update/masked_sgd.py. 20 bytes a kept float weight with momentum, 12
//            without: memory decides.
#pragma once
#include <cmath>

#include "unit.cuh"

namespace sparsekern {

struct SgdOptions {
  Scalar factor, found_inf, rate;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize, clear;
};

template <typename T>
struct SgdConstants {
  T factor;       // of the gradient; negative to maximise
  T l2;           // of the weight within the gradient
  T momentum;     // of what it was; used where there is a momentum
  T grad_weight;  // 1 - dampening
  T minus_lr;
  bool nesterov;
  bool clear;  // masked weights become zero, else they stay
  bool skip;   // nothing changes at all
};

template <typename E, typename G>
struct SgdStep {
  using Param = E;
  using T = Compute<E>;
  using Options = SgdOptions;
  using Constants = SgdConstants<T>;

  static SPARSEKERN_HOST_DEVICE Constants constants(const Options& o, const Row&) {
    const double factor = o.factor.read();
    Constants c;
    c.factor = T(o.maximize ? -factor : factor);
    c.l2 = T(o.weight_decay);
    c.momentum = T(o.momentum);
    c.grad_weight = T(1 - o.dampening);
    c.minus_lr = T(-o.rate.read());
    c.nesterov = o.nesterov;
    c.clear = o.clear;
    c.skip = o.found_inf.read() != 0;
    return c;
  }

  static SPARSEKERN_HOST_DEVICE void unit(const Row& row, const Place& place, const Constants& c) {
    Unit<E> weights = load<E>(row.param, place);
    const Unit<G> gradients = load<G>(row.grad, place);
    const bool has_momentum = row.first != nullptr;
    Unit<T> moments{};
    if (has_momentum) moments = load<T>(row.first, place);
    SPARSEKERN_UNROLL(4)
    for (int k = 0; k < kUnit; ++k) {
      const T weight = to_compute(weights.at[k]);
      T g = T(to_compute(gradients.at[k])) * c.factor;
      if (c.l2 != 0) g = std::fma(weight, c.l2, g);
      if (has_momentum) {
        const T moved = std::fma(moments.at[k], c.momentum, g * c.grad_weight);
        const T b = row.is_start ? g : moved;
        moments.at[k] = place.keeps(k) ? b : moments.at[k];
        g = c.nesterov ? std::fma(b, c.momentum, g) : b;
      }
      const E moved = from_compute<E>(std::fma(g, c.minus_lr, weight));
      const E masked = c.clear ? E{} : weights.at[k];
      weights.at[k] = place.keeps(k) ? moved : masked;
    }
    store(row.param, place, weights);
    if (has_momentum) store(row.first, place, moments);
    store_copy(row, place, weights);
  }
};

}  // namespace sparsekern
