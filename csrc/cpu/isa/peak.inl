// Formula    sum += a * b, from registers or with one operand from a 4 KB buffer: the two ceilings
//            that decide how fast a sparse kernel can be (bench/roofline.py).
// Mapping    kChains independent accumulators hide the latency of the multiply-add.
// Tile       none.
// Arithmetic floats.
// Alignment  the buffer is written before it is read: an untouched page would be the zero page.
// Contract   sparsekern_peak in select.cpp.

#pragma once

constexpr int kPeakChains = 10;
constexpr int kPeakFloats = 1024;

// Returns the flops it has done in `rounds` rounds; `result` keeps the compiler honest.
template <typename V, bool kFromMemory>
static int64_t peak_flops(int64_t rounds, float* result) {
  alignas(64) float buffer[kPeakFloats];
  for (int i = 0; i < kPeakFloats; ++i) buffer[i] = 1.0f / float(i + 1);
  constexpr int kSteps = kPeakFloats / V::kWidth / kPeakChains;
  const typename V::Reg factor = V::broadcast(0.5f + *result);
  typename V::Reg sum[kPeakChains];
  SPARSEKERN_UNROLL(10)
  for (int k = 0; k < kPeakChains; ++k) sum[k] = V::broadcast(float(k));
  for (int64_t round = 0; round < rounds; ++round) {
    for (int step = 0; step < kSteps; ++step) {
      SPARSEKERN_UNROLL(10)
      for (int k = 0; k < kPeakChains; ++k) {
        if constexpr (kFromMemory) {
          const float* p = buffer + (step * kPeakChains + k) * V::kWidth;
          sum[k] = V::mul_add(factor, V::load(p), sum[k]);
        } else {
          sum[k] = V::mul_add(factor, sum[k], factor);
        }
      }
    }
  }
  float total = 0;
  for (int k = 0; k < kPeakChains; ++k) {
    V::store(buffer, sum[k]);
    for (int i = 0; i < V::kWidth; ++i) total += buffer[i];
  }
  *result = total;
  return rounds * kSteps * kPeakChains * V::kWidth * 2;
}
