// The bodies of the update ops of one instruction set, as update_kernels.h describes them.
#pragma once

template <typename V>
constexpr UpdateKernels update_table() {
  return {walk_dtype<V, AdamwBody<V>>, walk_dtype<V, SgdBody<V>>, squares_dtype<V>};
}
