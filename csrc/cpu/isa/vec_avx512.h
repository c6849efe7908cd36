// Sixteen floats: AVX-512 F and BW.
#pragma once
#include <immintrin.h>

#include "../../common/dtype.h"
#include "../../common/inline.h"

namespace sparsekern::avx512 {

#include "vec_four.inl"

// Half a vector, for batches of at most eight.
struct Vec8 {
  static constexpr int kWidth = 8;
  static constexpr int kMultiplies = 2;  // that start in one cycle
  using Element = float;
  using Reg = __m256;

  static SPARSEKERN_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static SPARSEKERN_INLINE Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static SPARSEKERN_INLINE void store(float* p, Reg r) { _mm256_storeu_ps(p, r); }
  static SPARSEKERN_INLINE Reg mul_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
};

struct Vec {
  static constexpr int kWidth = 16;
  using Four = Vec4;
  using Eight = Vec8;
  static constexpr int kMultiplies = 2;  // that start in one cycle
  using Element = float;
  using Reg = __m512;

  static SPARSEKERN_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static SPARSEKERN_INLINE Reg broadcast(float value) { return _mm512_set1_ps(value); }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static SPARSEKERN_INLINE Reg load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static SPARSEKERN_INLINE void store(float* p, Reg r) { _mm512_storeu_ps(p, r); }
  static SPARSEKERN_INLINE void store(BFloat16* p, Reg r) {
    const __m512i bits = _mm512_castps_si512(r);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(r, r, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
  }
  static SPARSEKERN_INLINE void store(Half* p, Reg r) {
    const __m256i bits = _mm512_cvtps_ph(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
  }
  // Lanes [first, last) of a vector; bounds beyond the vector are cut off.
  using Lanes = __mmask16;
  static SPARSEKERN_INLINE Lanes lanes(int first, int last) {
    const int from = first < 0 ? 0 : first > 16 ? 16 : first;
    const int to = last < from ? from : last > 16 ? 16 : last;
    return Lanes((1u << to) - (1u << from));
  }
  static SPARSEKERN_INLINE Reg load(const float* p, Lanes lanes) {
    return _mm512_maskz_loadu_ps(lanes, p);
  }
  // p[0], p[2], p[4], ...; `low` and `high` say which of the 32 elements may be read.
  static SPARSEKERN_INLINE Reg load_even(const float* p, Lanes low, Lanes high) {
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_ps(load(p, low), even, load(p + 16, high));
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg r, int count) {
    if (count == kWidth) return _mm512_storeu_ps(p, r);
    if (count == 8) return _mm256_storeu_ps(p, _mm512_castps512_ps256(r));
    _mm512_mask_storeu_ps(p, Lanes((1u << count) - 1), r);
  }
  // p[0], p[2], p[4], ... = the first `count` lanes; what lies between is not touched.
  static SPARSEKERN_INLINE void store_even(float* p, Reg r, int count) {
    const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    constexpr Lanes kEven = 0x5555;
    _mm512_mask_storeu_ps(p, kEven & lanes(0, 2 * count), _mm512_permutexvar_ps(low, r));
    if (count > 8)
      _mm512_mask_storeu_ps(p + 16, kEven & lanes(0, 2 * count - 16),
                            _mm512_permutexvar_ps(high, r));
  }
  // x[col[i]] for all lanes, or the first `count` of them and zero.
  static SPARSEKERN_INLINE Reg gather(const float* x, const int32_t* col) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(col), x, 4);
  }
  static SPARSEKERN_INLINE Reg gather(const float* x, const int32_t* col, int count) {
    const Lanes some = lanes(0, count);
    return _mm512_mask_i32gather_ps(zero(), some, _mm512_maskz_loadu_epi32(some, col), x, 4);
  }
  static SPARSEKERN_INLINE float sum(Reg r) {
    const __m256 h = add_halves(r);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static SPARSEKERN_INLINE Reg mul_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // Bit i: whether lane i of `a` is above that of `b`, or at least that; never for NaN.
  static SPARSEKERN_INLINE uint64_t above(Reg a, Reg b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
  }
  static SPARSEKERN_INLINE uint64_t at_least(Reg a, Reg b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
  }
  // Writes base + i for every set bit i of 16, ascending; the target has room for all 16.
  static constexpr bool kCompresses = true;
  static SPARSEKERN_INLINE void compress(uint32_t bits, int32_t base, int32_t* target) {
    const __m512i all =
        _mm512_add_epi32(_mm512_set1_epi32(base),
                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    // PERF: through a register; Zen 4 writes compressed vectors to memory in microcode.
    _mm512_storeu_si512(target, _mm512_maskz_compress_epi32(__mmask16(bits), all));
  }
  // Bit i: whether byte i of 64 is not zero.
  static SPARSEKERN_INLINE uint64_t nonzero_bytes(const uint8_t* p) {
    const __m512i bytes = _mm512_loadu_si512(p);
    return _mm512_test_epi8_mask(bytes, bytes);
  }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static SPARSEKERN_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
  // The larger one; `b` if either is NaN.
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  // `yes` where a > b, `no` elsewhere and for NaN.
  static SPARSEKERN_INLINE Reg where_above(Reg a, Reg b, Reg yes, Reg no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
  }
  // `x` where y is above zero or NaN, zero elsewhere.
  static SPARSEKERN_INLINE Reg gate(Reg x, Reg y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, zero(), _CMP_NLE_UQ), x);
  }
  // a * 2^n with n in the lowest nine bits of `bits`.
  static SPARSEKERN_INLINE Reg add_exponent(Reg a, Reg bits) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), n));
  }
  static constexpr bool kMathLibrary = false;
  // Lane i is chosen where bit i of `word` is 1; higher bits do not matter.
  using Chosen = __mmask16;
  static SPARSEKERN_INLINE Chosen chosen(uint64_t word) { return Chosen(word); }
  static SPARSEKERN_INLINE Reg select(Chosen chosen, Reg yes, Reg no) {
    return _mm512_mask_mov_ps(no, chosen, yes);
  }

  // 16 x 16 transpose: pairs, quadruples, then 128-bit lanes twice.
  static SPARSEKERN_INLINE void transpose(Reg* r) {
    Reg t[16];
    SPARSEKERN_UNROLL(16)
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    Reg u[16];
    SPARSEKERN_UNROLL(16)
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    // u[4g + j] holds column j + 4 * lane of rows 4g..4g+3 in its 128-bit lanes.
    SPARSEKERN_UNROLL(4)
    for (int j = 0; j < 4; ++j) {
      const Reg a = _mm512_shuffle_f32x4(u[j], u[4 + j], _MM_SHUFFLE(2, 0, 2, 0));
      const Reg b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], _MM_SHUFFLE(2, 0, 2, 0));
      const Reg c = _mm512_shuffle_f32x4(u[j], u[4 + j], _MM_SHUFFLE(3, 1, 3, 1));
      const Reg d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], _MM_SHUFFLE(3, 1, 3, 1));
      r[j] = _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0));
      r[8 + j] = _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1));
      r[4 + j] = _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(2, 0, 2, 0));
      r[12 + j] = _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(3, 1, 3, 1));
    }
  }

  // p[i] (+)= sum over lanes of r[i] for the first `count` of four vectors.
  static SPARSEKERN_INLINE void reduce4(const Reg* r, int64_t count, bool accumulate, float* p) {
    __m256 h[4];
    SPARSEKERN_UNROLL(4)
    for (int i = 0; i < 4; ++i) h[i] = add_halves(r[i]);
    const __m256 q = fold_neighbours(fold_pairs(h[0], h[1]), fold_pairs(h[2], h[3]));
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1));
    if (count >= 4) {
      if (accumulate) sums = _mm_add_ps(sums, _mm_loadu_ps(p));
      _mm_storeu_ps(p, sums);
    } else {
      const __mmask8 keep = __mmask8((1u << count) - 1);
      if (accumulate) sums = _mm_add_ps(sums, _mm_maskz_loadu_ps(keep, p));
      _mm_mask_storeu_ps(p, keep, sums);
    }
  }

 private:
  static SPARSEKERN_INLINE __m256 add_halves(Reg r) {
    return _mm256_add_ps(_mm512_castps512_ps256(r),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(r), 1)));
  }
  // [a0+a2, a1+a3, b2+b0, b3+b1] in each 128-bit half.
  static SPARSEKERN_INLINE __m256 fold_pairs(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xCC),
                         _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
  }
  static SPARSEKERN_INLINE __m256 fold_neighbours(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
};

}  // namespace sparsekern::avx512
