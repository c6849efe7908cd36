// Formula    sqrt of the sum of (factor * g)^2 where the bit is 1.
// Mapping    a block sums a chunk of 8192 gradients of one tensor; a second kernel, of one block, adds
//            these sums. Both add in an order that follows from the sizes alone: no atomics.
// Arithmetic squares and the sums of 8 of them in float (double for double), everything longer in
//            double.
// Alignment  none required; units of 4 elements that are aligned are loaded whole.
// Contract   sparsekern/ops/update/masked_norm.py. 4 bytes and a bit a kept float gradient: memory
//            decides.
#pragma once
#include <cmath>

#include "unit.cuh"

namespace sparsekern {

// Adds the squares of a thread's units to its four sums.
// NOTE: all that is in flight is asked for before the first square: nothing is written in between, so
// a group of units waits for memory once.
constexpr int kGroup = 4;

template <typename G, bool kWholeChunk>
SPARSEKERN_HOST_DEVICE void add_squares(const Row& row, int64_t first, uint32_t kept,
                                        Compute<G> factor, Unit<Compute<G>>* sum) {
  SPARSEKERN_UNROLL(2)
  for (int begin = 0; begin < kUnits; begin += kGroup) {
    Unit<G> gradients[kGroup];
    SPARSEKERN_UNROLL(4)
    for (int u = 0; u < kGroup; ++u) {
      const Place place = place_of<kWholeChunk>(row, first, begin + u, kept);
      gradients[u] = Unit<G>{};
      if (place.kept != 0) gradients[u] = load<G>(row.grad, place);
    }
    SPARSEKERN_UNROLL(4)
    for (int u = 0; u < kGroup; ++u) {
      const Place place = place_of<kWholeChunk>(row, first, begin + u, kept);
      SPARSEKERN_UNROLL(4)
      for (int k = 0; k < kUnit; ++k) {
        const Compute<G> g = to_compute(gradients[u].at[k]) * factor;
        sum->at[k] = place.keeps(k) ? std::fma(g, g, sum->at[k]) : sum->at[k];
      }
    }
  }
}

// The sum of one thread.
template <typename G>
SPARSEKERN_HOST_DEVICE double sum_squares(const Row& row, int64_t first, int thread,
                                          Compute<G> factor) {
  const uint32_t kept = kept_bits(row, first);
  Unit<Compute<G>> sum{};
  if (is_whole_chunk(row, first - thread * kUnit)) {
    add_squares<G, true>(row, first, kept, factor, &sum);
  } else {
    add_squares<G, false>(row, first, kept, factor, &sum);
  }
  return (double(sum.at[0]) + double(sum.at[1])) + (double(sum.at[2]) + double(sum.at[3]));
}

// One step of adding `2 * half` numbers by a tree: threads below `half` add what lies that far away.
SPARSEKERN_HOST_DEVICE void fold(double* sums, int half, int thread) {
  if (thread < half) sums[thread] += sums[thread + half];
}

// Every thread of the last block adds its share of the chunks' sums, in order.
SPARSEKERN_HOST_DEVICE double share_of(const double* partial, int64_t count, int thread,
                                       int threads) {
  double sum = 0;
  for (int64_t i = thread; i < count; i += threads) sum += partial[i];
  return sum;
}

constexpr int kFinalThreads = 1024;

#if defined(__CUDACC__)

template <typename G>
__global__ void __launch_bounds__(kThreads)
    masked_norm_kernel(const __grid_constant__ Table table, const __grid_constant__ Scalar factor,
                       double* partial) {
  __shared__ double sums[kThreads];
  const int found = table.find(int32_t(blockIdx.x));
  const Row& row = table.row[found];
  const int thread = int(threadIdx.x);
  const int64_t first = first_weight(table, found, int32_t(blockIdx.x), thread);
  sums[thread] = sum_squares<G>(row, first, thread, Compute<G>(factor.read()));
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    fold(sums, half, thread);
  }
  if (thread == 0) partial[blockIdx.x] = sums[0];
}

template <typename T>
__global__ void __launch_bounds__(kFinalThreads)
    masked_norm_final_kernel(const double* partial, int64_t count, T* norm) {
  __shared__ double sums[kFinalThreads];
  const int thread = int(threadIdx.x);
  sums[thread] = share_of(partial, count, thread, kFinalThreads);
  for (int half = kFinalThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    fold(sums, half, thread);
  }
  if (thread == 0) *norm = T(std::sqrt(sums[0]));
}

template <typename G>
void run_norm(const Table& table, int32_t chunks, const Scalar& factor, double* partial,
              cudaStream_t stream) {
  masked_norm_kernel<G><<<unsigned(chunks), kThreads, 0, stream>>>(table, factor, partial);
}

template <typename T>
void run_norm_final(const double* partial, int64_t count, T* norm, cudaStream_t stream) {
  masked_norm_final_kernel<<<1, kFinalThreads, 0, stream>>>(partial, count, norm);
}

#else

// What the kernels do, thread after thread.
template <typename G>
void run_norm(const Table& table, int32_t chunks, const Scalar& factor, double* partial, void*) {
  for (int32_t chunk = 0; chunk < chunks; ++chunk) {
    double sums[kThreads];
    const int found = table.find(chunk);
    const Row& row = table.row[found];
    for (int thread = 0; thread < kThreads; ++thread) {
      const int64_t first = first_weight(table, found, chunk, thread);
      sums[thread] = sum_squares<G>(row, first, thread, Compute<G>(factor.read()));
    }
    for (int half = kThreads / 2; half > 0; half /= 2) {
      for (int thread = 0; thread < kThreads; ++thread) fold(sums, half, thread);
    }
    partial[chunk] = sums[0];
  }
}

template <typename T>
void run_norm_final(const double* partial, int64_t count, T* norm, void*) {
  double sums[kFinalThreads];
  for (int t = 0; t < kFinalThreads; ++t) sums[t] = share_of(partial, count, t, kFinalThreads);
  for (int half = kFinalThreads / 2; half > 0; half /= 2) {
    for (int thread = 0; thread < kFinalThreads; ++thread) fold(sums, half, thread);
  }
  *norm = T(std::sqrt(sums[0]));
}

#endif

// All chunks of all tensors: how many sums there are to add.
inline int64_t count_chunks(const std::vector<Row>& rows) {
  int64_t chunks = 0;
  for (const Row& row : rows) chunks += ceil_div(row.count, kChunk);
  return chunks;
}

// Calls launch(G(), table, chunks, first) for all of them; its sums begin at the first-th.
template <typename Launch>
void launch_norm(const std::vector<Row>& rows, const Launch& launch) {
  int64_t first = 0;
  for_each_types(rows, [&](auto types, const std::vector<Row>& own) {
    for_each_table(own, [&](const Table& table, int32_t chunks) {
      launch(typename decltype(types)::Grad(), table, chunks, first);
      first += chunks;
    });
  });
}

}  // namespace sparsekern
