// Integer arithmetic shared by kernels and launch code. Torch-free.
#pragma once
#include <cstdint>

namespace sparsekern {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace sparsekern
