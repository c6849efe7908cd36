// Four floats of SSE with FMA, for batches of at most four and for gathers; included by the
// instruction sets that have both, each with a copy of its own.
#pragma once

struct Vec4 {
  static constexpr int kWidth = 4;
  static constexpr int kMultiplies = 2;  // that start in one cycle
  using Element = float;
  using Reg = __m128;

  static SPARSEKERN_INLINE Reg zero() { return _mm_setzero_ps(); }
  static SPARSEKERN_INLINE Reg broadcast(float value) { return _mm_set1_ps(value); }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm_loadu_ps(p); }
  static SPARSEKERN_INLINE void store(float* p, Reg r) { _mm_storeu_ps(p, r); }
  // PERF: four loads; with vgatherdps a batch of one takes 1.3 to 2 times as long (1024 x 1024 and
  // 4096 x 4096, densities 0.1 to 0.01, Zen 5, one thread).
  static SPARSEKERN_INLINE Reg gather(const float* x, const int32_t* col) {
    const Reg a = _mm_insert_ps(_mm_load_ss(x + col[0]), _mm_load_ss(x + col[1]), 0x10);
    return _mm_insert_ps(_mm_insert_ps(a, _mm_load_ss(x + col[2]), 0x20), _mm_load_ss(x + col[3]),
                         0x30);
  }
  static SPARSEKERN_INLINE Reg mul_add(Reg a, Reg b, Reg c) { return _mm_fmadd_ps(a, b, c); }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm_add_ps(a, b); }
  // c + a b in the first lane.
  static SPARSEKERN_INLINE Reg mul_add_one(float a, float b, Reg c) {
    return _mm_fmadd_ps(_mm_set_ss(a), _mm_set_ss(b), c);
  }
  static SPARSEKERN_INLINE float sum(Reg r) {
    const Reg pair = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
};
