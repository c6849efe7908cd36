// Formula    state[j] = old state[positions[j]], zero where positions[j] is -1; in place.
// Mapping    pieces of the elements; the old state is copied to scratch first.
// Cost       two reads and two writes of the state, one read of the positions.
// Arithmetic none: elements are copied by size.
// Contract   sparsekern/ops/csr/move.py.
#include <torch/csrc/stable/library.h>

#include "batch.h"

namespace sparsekern {
namespace {

template <typename E>
void move(const int32_t* positions, int64_t numel, void* data) {
  ScratchFrame scratch;
  E* state = static_cast<E*>(data);
  E* old = scratch.take<E>(numel);
  parallel_range(numel, [&](int64_t begin, int64_t end) {
    std::copy(state + begin, state + end, old + begin);
  });
  parallel_range(numel, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      // SAFETY: -1 and everything else outside of the state become zero. PERF: by masks, because a
      // branch would be mispredicted for every grown weight (7.5 ms instead of 3 for 3.4 million).
      const bool kept = uint32_t(positions[j]) < uint64_t(numel);
      state[j] = old[positions[j] & -int64_t(kept)] & (E(0) - E(kept));
    }
  });
}

void csr_move_cpu(Tensor state, Tensor positions) {
  const int64_t numel = state.numel();
  check_int32(positions, "positions", numel);
  SPARSEKERN_CHECK(state.is_contiguous(),
                   "Expected state to be contiguous. Got a tensor with gaps.");
  const int32_t* from = static_cast<const int32_t*>(positions.data_ptr());
  const size_t size = state.element_size();
  SPARSEKERN_CHECK(size == 1 || size == 2 || size == 4 || size == 8,
                   "Expected elements of 1, 2, 4 or 8 bytes. Got ", size, ".");
  const auto run = size == 8   ? move<uint64_t>
                   : size == 4 ? move<uint32_t>
                   : size == 2 ? move<uint16_t>
                               : move<uint8_t>;
  run(from, numel, state.mutable_data_ptr());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_move_", TORCH_BOX(&csr_move_cpu)); }

}  // namespace sparsekern
