// Formula    g = factor * grad + l2 * p;  b = momentum * b + (1 - dampening) g, or g at the start;
//            p = p - lr * (g, b, or g + momentum * b by Nesterov)   where the bit is 1.
// Mapping    64 weights, those of one word of the mask, then the next; no branch within a word that
//            is not the same for all words.
// Tile       a span of one tensor; its tail is padded on the stack and runs through the same body.
// Arithmetic float for float, bfloat16 and half, double for double; no sums over elements.
// Alignment  none required.
// Contract   sparsekern/ops/update/masked_sgd.py. 20 bytes a float weight with momentum, 12 without.
#pragma once
#include "update.inl"

template <typename V>
struct SgdBody {
  using Constants = SgdConstants;
  using T = typename V::Element;
  using Reg = typename V::Reg;
  Reg factor, l2, momentum, grad_weight, minus_lr;
  bool has_l2, nesterov, start, clear;

  explicit SgdBody(const SgdConstants& c)
      : factor(V::broadcast(T(c.factor))),
        l2(V::broadcast(T(c.l2))),
        momentum(V::broadcast(T(c.momentum))),
        grad_weight(V::broadcast(T(c.grad_weight))),
        minus_lr(V::broadcast(T(-c.lr))),
        has_l2(c.l2 != 0),
        nesterov(c.nesterov),
        start(c.start),
        clear(c.clear) {}

  template <typename E, typename G, bool kMasked>
  SPARSEKERN_INLINE void word(E* p, const G* g, T* b, T*, uint64_t word) const {
    for (int64_t k = 0; k < kWordBits; k += V::kWidth) {
      const typename V::Chosen kept = V::chosen(word >> k);
      const Reg weight = V::load(p + k);
      Reg gradient = V::mul(V::load(g + k), factor);
      if (has_l2) gradient = V::mul_add(weight, l2, gradient);
      if (b != nullptr) {
        const Reg old_b = V::load(b + k);
        const Reg moved = V::mul_add(old_b, momentum, V::mul(gradient, grad_weight));
        const Reg new_b = start ? gradient : moved;
        V::store(b + k, kMasked ? V::select(kept, new_b, old_b) : new_b);
        gradient = nesterov ? V::mul_add(new_b, momentum, gradient) : new_b;
      }
      const Reg new_p = V::mul_add(gradient, minus_lr, weight);
      V::store(p + k, kMasked ? V::select(kept, new_p, clear ? V::zero() : weight) : new_p);
    }
  }
};
