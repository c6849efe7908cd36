// Formula    g = factor * grad + l2 * p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//            p = decay * p - step_size * m / (sqrt(v) * root_factor + eps)   where the bit is 1.
// Mapping    64 weights, those of one word of the mask, then the next; no branch within a word.
// Tile       a span of one tensor; its tail is padded on the stack and runs through the same body.
// Arithmetic float for float, bfloat16 and half, double for double; no sums over elements.
// Alignment  none required.
// Contract   sparsekern/ops/update/masked_adamw.py. 28 bytes a float weight pass through memory.
#pragma once
#include "update.inl"

template <typename V>
struct AdamwBody {
  using Constants = AdamwConstants;
  using T = typename V::Element;
  using Reg = typename V::Reg;
  Reg factor, decay, l2, beta1, beta2, grad_weight, square_weight, minus_step, root_factor, eps;
  bool has_l2, clear;

  explicit AdamwBody(const AdamwConstants& c)
      : factor(V::broadcast(T(c.factor))),
        decay(V::broadcast(T(c.decay))),
        l2(V::broadcast(T(c.l2))),
        beta1(V::broadcast(T(c.beta1))),
        beta2(V::broadcast(T(c.beta2))),
        grad_weight(V::broadcast(T(c.grad_weight))),
        square_weight(V::broadcast(T(c.square_weight))),
        minus_step(V::broadcast(T(-c.step_size))),
        root_factor(V::broadcast(T(c.root_factor))),
        eps(V::broadcast(T(c.eps))),
        has_l2(c.l2 != 0),
        clear(c.clear) {}

  template <typename E, typename G, bool kMasked>
  SPARSEKERN_INLINE void word(E* p, const G* g, T* m, T* v, uint64_t word) const {
    for (int64_t k = 0; k < kWordBits; k += V::kWidth) {
      const Reg weight = V::load(p + k);
      Reg gradient = V::mul(V::load(g + k), factor);
      if (has_l2) gradient = V::mul_add(weight, l2, gradient);
      const Reg old_m = V::load(m + k), old_v = V::load(v + k);
      const Reg new_m = V::mul_add(old_m, beta1, V::mul(gradient, grad_weight));
      const Reg new_v = V::mul_add(old_v, beta2, V::mul(V::mul(gradient, gradient), square_weight));
      const Reg root = V::mul_add(V::sqrt(new_v), root_factor, eps);
      const Reg step = V::div(V::mul(minus_step, new_m), root);
      const Reg new_p = V::mul_add(weight, decay, step);
      if constexpr (kMasked) {
        const typename V::Chosen kept = V::chosen(word >> k);
        V::store(p + k, V::select(kept, new_p, clear ? V::zero() : weight));
        V::store(m + k, V::select(kept, new_m, old_m));
        V::store(v + k, V::select(kept, new_v, old_v));
      } else {
        V::store(p + k, new_p);
        V::store(m + k, new_m);
        V::store(v + k, new_v);
      }
    }
  }
};
