// Eight floats: AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include "../../common/dtype.h"
#include "../../common/inline.h"

namespace sparsekern::avx2 {

#include "vec_four.inl"

struct Vec {
  static constexpr int kWidth = 8;
  using Four = Vec4;
  using Eight = Vec;
  static constexpr int kMultiplies = 2;  // that start in one cycle
  using Element = float;
  using Reg = __m256;

  static SPARSEKERN_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static SPARSEKERN_INLINE Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static SPARSEKERN_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static SPARSEKERN_INLINE Reg load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static SPARSEKERN_INLINE Reg load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSEKERN_INLINE void store(float* p, Reg r) { _mm256_storeu_ps(p, r); }
  static SPARSEKERN_INLINE void store(BFloat16* p, Reg r) {
    const __m256i bits = _mm256_castps_si256(r);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(r, r, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_packus_epi32(rounded, _mm256_setzero_si256());
    const __m256i ordered = _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
  }
  static SPARSEKERN_INLINE void store(Half* p, Reg r) {
    const __m128i bits = _mm256_cvtps_ph(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
  }
  // Lanes [first, last) of a vector; bounds beyond the vector are cut off.
  using Lanes = __m256i;
  static SPARSEKERN_INLINE Lanes lanes(int first, int last) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  }
  static SPARSEKERN_INLINE Reg load(const float* p, Lanes lanes) {
    return _mm256_maskload_ps(p, lanes);
  }
  // p[0], p[2], p[4], ...; `low` and `high` say which of the 16 elements may be read.
  static SPARSEKERN_INLINE Reg load_even(const float* p, Lanes low, Lanes high) {
    const Reg mixed = _mm256_shuffle_ps(load(p, low), load(p + 8, high), _MM_SHUFFLE(2, 0, 2, 0));
    return _mm256_castpd_ps(
        _mm256_permute4x64_pd(_mm256_castps_pd(mixed), _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static SPARSEKERN_INLINE void store_first(float* p, Reg r, int count) {
    if (count == kWidth) return _mm256_storeu_ps(p, r);
    // PERF: element by element, not vmaskmovps, whose store form is microcoded on Zen.
    alignas(32) float lane[kWidth];
    _mm256_store_ps(lane, r);
    for (int i = 0; i < count; ++i) p[i] = lane[i];
  }
  // p[0], p[2], p[4], ... = the first `count` lanes; what lies between is not touched.
  static SPARSEKERN_INLINE void store_even(float* p, Reg r, int count) {
    alignas(32) float lane[kWidth];
    _mm256_store_ps(lane, r);
    for (int i = 0; i < count; ++i) p[2 * i] = lane[i];
  }
  // x[col[i]] for all lanes, or the first `count` of them and zero.
  static SPARSEKERN_INLINE Reg gather(const float* x, const int32_t* col) {
    return _mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(col)), 4);
  }
  static SPARSEKERN_INLINE Reg gather(const float* x, const int32_t* col, int count) {
    const Lanes some = lanes(0, count);
    return _mm256_mask_i32gather_ps(zero(), x, _mm256_maskload_epi32(col, some),
                                    _mm256_castsi256_ps(some), 4);
  }
  static SPARSEKERN_INLINE float sum(Reg r) {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(r), _mm256_extractf128_ps(r, 1));
    const __m128 pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static SPARSEKERN_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static SPARSEKERN_INLINE Reg mul_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  // Bit i: whether lane i of `a` is above that of `b`, or at least that; never for NaN.
  static SPARSEKERN_INLINE uint64_t above(Reg a, Reg b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static SPARSEKERN_INLINE uint64_t at_least(Reg a, Reg b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static constexpr bool kCompresses = false;
  // Bit i: whether byte i of 64 is not zero.
  static SPARSEKERN_INLINE uint64_t nonzero_bytes(const uint8_t* p) {
    return uint64_t(nonzero_half(p)) | uint64_t(nonzero_half(p + 32)) << 32;
  }
  static SPARSEKERN_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static SPARSEKERN_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static SPARSEKERN_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
  // The larger one; `b` if either is NaN.
  static SPARSEKERN_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  // `yes` where a > b, `no` elsewhere and for NaN.
  static SPARSEKERN_INLINE Reg where_above(Reg a, Reg b, Reg yes, Reg no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  // `x` where y is above zero or NaN, zero elsewhere.
  static SPARSEKERN_INLINE Reg gate(Reg x, Reg y) {
    return _mm256_and_ps(x, _mm256_cmp_ps(y, zero(), _CMP_NLE_UQ));
  }
  // a * 2^n with n in the lowest nine bits of `bits`.
  static SPARSEKERN_INLINE Reg add_exponent(Reg a, Reg bits) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
  }
  static constexpr bool kMathLibrary = false;
  // Lane i is chosen where bit i of `word` is 1; higher bits do not matter.
  using Chosen = __m256i;
  static SPARSEKERN_INLINE Chosen chosen(uint64_t word) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(word & 0xff)), lane), lane);
  }
  static SPARSEKERN_INLINE Reg select(Chosen chosen, Reg yes, Reg no) {
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(chosen));
  }

  // 8 x 8 transpose: pairs, then quadruples, then the two 128-bit halves.
  static SPARSEKERN_INLINE void transpose(Reg* r) {
    Reg t[8];
    SPARSEKERN_UNROLL(16)
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    Reg u[8];
    SPARSEKERN_UNROLL(16)
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    SPARSEKERN_UNROLL(16)
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }

  // p[i] (+)= sum over lanes of r[i] for the first `count` of four vectors.
  static SPARSEKERN_INLINE void reduce4(const Reg* r, int64_t count, bool accumulate, float* p) {
    const Reg halves = fold_neighbours(fold_pairs(r[0], r[1]), fold_pairs(r[2], r[3]));
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    if (count >= 4) {
      if (accumulate) sums = _mm_add_ps(sums, _mm_loadu_ps(p));
      _mm_storeu_ps(p, sums);
      return;
    }
    // PERF: element by element, not vmaskmovps, whose store form is microcoded on Zen.
    alignas(16) float sum[4];
    _mm_store_ps(sum, sums);
    for (int i = 0; i < count; ++i) p[i] = accumulate ? p[i] + sum[i] : sum[i];
  }

 private:
  static SPARSEKERN_INLINE uint32_t nonzero_half(const uint8_t* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return ~uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
  }
  // [a0+a2, a1+a3, b2+b0, b3+b1] in each 128-bit half.
  static SPARSEKERN_INLINE Reg fold_pairs(Reg a, Reg b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xCC),
                         _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
  }
  static SPARSEKERN_INLINE Reg fold_neighbours(Reg a, Reg b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
};

}  // namespace sparsekern::avx2
