// Units of a row's arrays in registers: loaded and stored whole where they are aligned and complete,
// element by element else. Torch-free; runs on the host too, where it is tested.
#pragma once
#include <cstring>

#include "../element.cuh"
#include "table.cuh"

namespace sparsekern {

template <typename E>
struct alignas(sizeof(E) == 2 ? 8 : 16) Unit {
  E at[kUnit];
};

// Where a unit is, and which of its weights are kept.
struct Place {
  int64_t i;
  int count;  // weights that exist
  bool is_whole;
  uint32_t kept;  // bit k: of weight i + k

  SPARSEKERN_HOST_DEVICE bool keeps(int k) const { return (kept >> k & 1) != 0; }
};

template <bool kWholeChunk>
SPARSEKERN_HOST_DEVICE Place place_of(const Row& row, int64_t first, int unit, uint32_t kept) {
  const int64_t i = unit_weight(first, unit);
  const int count = kWholeChunk ? kUnit : unit_count(row, i);
  const bool is_whole = kWholeChunk || (row.is_aligned && count == kUnit);
  return {i, count, is_whole, kept >> (kUnit * unit) & 0xfu};
}

// NOTE: spelled out for the GPU, as the compiler splits stores of structs into elements; __stwb would
// not do, its stores are ordered ones.
template <typename E>
SPARSEKERN_HOST_DEVICE void store_whole(E* to, const Unit<E>& unit) {
#if defined(__CUDA_ARCH__)
  uint32_t word[sizeof unit / 4];
  memcpy(word, &unit, sizeof unit);
  const size_t address = __cvta_generic_to_global(to);
  if constexpr (sizeof unit == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(word[0]), "r"(word[1])
                 : "memory");
  } else {
    SPARSEKERN_UNROLL(2)
    for (size_t w = 0; w < sizeof unit / 4; w += 4) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address + 4 * w), "r"(word[w]),
                   "r"(word[w + 1]), "r"(word[w + 2]), "r"(word[w + 3])
                   : "memory");
    }
  }
#else
  *reinterpret_cast<Unit<E>*>(to) = unit;
#endif
}

template <typename E>
SPARSEKERN_HOST_DEVICE Unit<E> load(const void* array, const Place& place) {
  const E* from = static_cast<const E*>(array) + place.i;
  if (place.is_whole) return *reinterpret_cast<const Unit<E>*>(from);
  Unit<E> unit{};
  SPARSEKERN_UNROLL(4)
  for (int k = 0; k < kUnit; ++k) {
    if (k < place.count) unit.at[k] = from[k];
  }
  return unit;
}

template <typename E>
SPARSEKERN_HOST_DEVICE void store(void* array, const Place& place, const Unit<E>& unit) {
  E* to = static_cast<E*>(array) + place.i;
  if (place.is_whole) {
    store_whole(to, unit);
    return;
  }
  SPARSEKERN_UNROLL(4)
  for (int k = 0; k < kUnit; ++k) {
    if (k < place.count) to[k] = unit.at[k];
  }
}

// The row's 16-bit copy of what its weights have become; only float weights have one.
template <typename E>
SPARSEKERN_HOST_DEVICE void store_copy(const Row& row, const Place& place, const Unit<E>& weights) {
  if constexpr (std::is_same_v<E, float>) {
    if (row.copy == nullptr) return;
    Unit<uint16_t> copy{};
    SPARSEKERN_UNROLL(4)
    for (int k = 0; k < kUnit; ++k) {
      copy.at[k] = row.copy_is_half ? from_compute<Half>(weights.at[k]).bits
                                    : from_compute<BFloat16>(weights.at[k]).bits;
    }
    store(row.copy, place, copy);
  }
}

// A unit without a kept weight: nothing is read that is not copied, and states are not touched.
template <typename E>
SPARSEKERN_HOST_DEVICE void pass_over(const Row& row, const Place& place, bool clear) {
  if (!clear && row.copy == nullptr) return;
  Unit<E> weights{};
  if (clear) {
    store(row.param, place, weights);
  } else {
    weights = load<E>(row.param, place);
  }
  store_copy(row, place, weights);
}

// The work of one thread of a block: Step::unit for each of its units that has a kept weight.
template <typename Step, bool kWholeChunk>
SPARSEKERN_HOST_DEVICE void walk(const Row& row, int64_t first, uint32_t kept,
                                 const typename Step::Constants& constants) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int u = 0; u < kUnits; ++u) {
    const Place place = place_of<kWholeChunk>(row, first, u, kept);
    if (place.kept != 0) {
      Step::unit(row, place, constants);
    } else if (place.count > 0) {
      pass_over<typename Step::Param>(row, place, constants.clear);
    }
  }
}

// NOTE: chunks that are whole run without a branch that tells whole units from others.
template <typename Step>
SPARSEKERN_HOST_DEVICE void walk_chunk(const Row& row, int64_t first, int thread, uint32_t kept,
                                       const typename Step::Constants& constants) {
  if (constants.skip) return;
  if (is_whole_chunk(row, first - thread * kUnit)) {
    walk<Step, true>(row, first, kept, constants);
  } else {
    walk<Step, false>(row, first, kept, constants);
  }
}

#if defined(__CUDACC__)

// One block, one chunk of one tensor. Its constants are computed once, while mask bits are on their way.
template <typename Step>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ Table table,
                  const __grid_constant__ typename Step::Options options) {
  __shared__ typename Step::Constants shared;
  const int thread = int(threadIdx.x);
  const int found = table.find(int32_t(blockIdx.x));
  const Row& row = table.row[found];
  const int64_t first = first_weight(table, found, int32_t(blockIdx.x), thread);
  const uint32_t kept = kept_bits(row, first);
  if (thread == 0) shared = Step::constants(options, row);
  __syncthreads();
  walk_chunk<Step>(row, first, thread, kept, shared);
}

template <typename Step>
void run_update(const Table& table, int32_t chunks, const typename Step::Options& options,
                cudaStream_t stream) {
  update_kernel<Step><<<unsigned(chunks), kThreads, 0, stream>>>(table, options);
}

#else

// What the kernel does, thread after thread.
template <typename Step>
void run_update(const Table& table, int32_t chunks, const typename Step::Options& options, void*) {
  for (int32_t chunk = 0; chunk < chunks; ++chunk) {
    const int found = table.find(chunk);
    const Row& row = table.row[found];
    const typename Step::Constants constants = Step::constants(options, row);
    for (int thread = 0; thread < kThreads; ++thread) {
      const int64_t first = first_weight(table, found, chunk, thread);
      walk_chunk<Step>(row, first, thread, kept_bits(row, first), constants);
    }
  }
}

#endif

// Calls launch(Step<...>(), table, chunks, options) for all rows, by their dtypes.
template <template <typename, typename> class Step, typename Options, typename Launch>
void launch_steps(const std::vector<Row>& rows, const Options& options, const Launch& launch) {
  for_each_types(rows, [&](auto types, const std::vector<Row>& own) {
    using Own = Step<typename decltype(types)::Param, typename decltype(types)::Grad>;
    static_assert(sizeof(Table) + sizeof(Options) <= 4096, "the parameters of a kernel");
    for_each_table(
        own, [&](const Table& table, int32_t chunks) { launch(Own(), table, chunks, options); });
  });
}

}  // namespace sparsekern
