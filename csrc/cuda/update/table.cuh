// The work of an update kernel: a table of tensors, given as a kernel argument, and the chunks that
// blocks take of them. Nothing is copied to the device, so launches can be captured in CUDA graphs.
// Torch-free; runs on the host too, where it is tested.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <vector>

#include "../../common/ceil_div.h"
#include "../../common/dtype.h"
#include "../../common/inline.h"

namespace sparsekern {

// A thread takes units of 4 consecutive weights: 16 bytes of float state, so that the loads of a warp
// are whole lines. The mask bits of its 8 units fill one register, asked for at once.
constexpr int kUnit = 4;
constexpr int kUnits = 8;
constexpr int kThreads = 256;
constexpr int64_t kChunk = int64_t(kThreads) * kUnits * kUnit;  // weights of a block

// One number that is known at launch, or lies on the device.
struct Scalar {
  const void* pointer = nullptr;  // one float or double on the device; null: `value`
  double value = 1;
  bool is_double = false;

  SPARSEKERN_HOST_DEVICE double read() const {
    if (pointer == nullptr) return value;
    return is_double ? *static_cast<const double*>(pointer)
                     : double(*static_cast<const float*>(pointer));
  }
};

// One tensor. States are double for double weights, else float.
struct Row {
  void* param = nullptr;
  const void* grad = nullptr;
  void* first = nullptr;          // momentum, or the first moment; may be null
  void* second = nullptr;         // the second moment; may be null
  void* copy = nullptr;           // the new weights in 16 bits; may be null
  const uint8_t* bits = nullptr;  // one bit a weight, lowest first; null: all are kept
  int64_t count = 0;
  Scalar step;
  Dtype dtype = Dtype::kFloat;  // of param
  Dtype grad_dtype = Dtype::kFloat;
  bool copy_is_half = false;  // else bfloat16
  bool is_start = false;      // of a momentum
  bool is_aligned = false;    // units can be loaded whole
};

constexpr int kRows = 36;

struct Table {
  Row row[kRows];
  int32_t first_chunk[kRows];
  int32_t rows;

  // The last row that begins at or before this chunk.
  SPARSEKERN_HOST_DEVICE int find(int32_t chunk) const {
    int low = 0, high = rows;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_chunk[middle] <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Where a thread is: its units are those at `first + u * kThreads * kUnit` of a tensor.
SPARSEKERN_HOST_DEVICE int64_t first_weight(const Table& table, int row, int32_t chunk,
                                            int thread) {
  return int64_t(chunk - table.first_chunk[row]) * kChunk + thread * kUnit;
}

SPARSEKERN_HOST_DEVICE int64_t unit_weight(int64_t first, int unit) {
  return first + int64_t(unit) * kThreads * kUnit;
}

// Weights of the unit at `i` that exist.
SPARSEKERN_HOST_DEVICE int unit_count(const Row& row, int64_t i) {
  const int64_t left = row.count - i;
  return left >= kUnit ? kUnit : left > 0 ? int(left) : 0;
}

// The kept weights of a thread's units, 4 bits a unit.
// NOTE: bytes, as half of one is all a thread needs: the bits of a warp lie side by side in 16 bytes,
// one sector, whatever the width of the load, and masks need no alignment. No branch between the loads:
// each would wait for the one before. Behind the end, where nothing is kept, the last byte is read.
SPARSEKERN_HOST_DEVICE uint32_t kept_bits(const Row& row, int64_t first) {
  uint32_t byte[kUnits];
  if (row.bits == nullptr) {
    SPARSEKERN_UNROLL(8)
    for (int u = 0; u < kUnits; ++u) byte[u] = 0xffu;
  } else {
    const int64_t last = row.count - 1;
    SPARSEKERN_UNROLL(8)
    for (int u = 0; u < kUnits; ++u) {
      const int64_t i = unit_weight(first, u);
      byte[u] = row.bits[(i < last ? i : last) / 8];
    }
  }
  uint32_t kept = 0;
  SPARSEKERN_UNROLL(8)
  for (int u = 0; u < kUnits; ++u) {
    const uint32_t exist = (1u << unit_count(row, unit_weight(first, u))) - 1;
    kept |= (byte[u] >> (first % 8) & exist) << (kUnit * u);
  }
  return kept;
}

// Whether all units of the chunk that begins at this weight exist and can be loaded whole.
SPARSEKERN_HOST_DEVICE bool is_whole_chunk(const Row& row, int64_t begin) {
  return row.is_aligned && begin + kChunk <= row.count;
}

// Calls run(table, chunks) for as many rows as fit at a time; empty tensors are left out.
template <typename Run>
void for_each_table(const std::vector<Row>& rows, const Run& run) {
  Table table{};
  int64_t chunks = 0;
  const auto flush = [&] {
    if (table.rows != 0) run(static_cast<const Table&>(table), int32_t(chunks));
    table.rows = 0;
    chunks = 0;
  };
  for (const Row& row : rows) {
    if (row.count == 0) continue;
    // SAFETY: int32 counts the chunks of a launch: 2^44 weights of one tensor would be too many.
    const int64_t own = ceil_div(row.count, kChunk);
    if (table.rows == kRows || chunks + own > std::numeric_limits<int32_t>::max()) flush();
    table.row[table.rows] = row;
    table.first_chunk[table.rows] = int32_t(chunks);
    ++table.rows;
    chunks += own;
  }
  flush();
}

template <typename E, typename G>
struct Types {
  using Param = E;
  using Grad = G;
};

// Calls run(Types<E, G>, rows) for the rows of each pair of dtypes of weights and gradients.
template <typename Run>
void for_each_types(const std::vector<Row>& rows, const Run& run) {
  const auto of = [&](Dtype dtype, Dtype grad_dtype, auto types) {
    std::vector<Row> own;
    std::copy_if(rows.begin(), rows.end(), std::back_inserter(own), [&](const Row& row) {
      return row.dtype == dtype && row.grad_dtype == grad_dtype;
    });
    if (!own.empty()) run(types, own);
  };
  of(Dtype::kFloat, Dtype::kFloat, Types<float, float>());
  of(Dtype::kFloat, Dtype::kBFloat16, Types<float, BFloat16>());
  of(Dtype::kFloat, Dtype::kHalf, Types<float, Half>());
  of(Dtype::kBFloat16, Dtype::kBFloat16, Types<BFloat16, BFloat16>());
  of(Dtype::kHalf, Dtype::kHalf, Types<Half, Half>());
  of(Dtype::kDouble, Dtype::kDouble, Types<double, double>());
}

// Whether every unit of the row's arrays can be loaded whole.
inline bool is_aligned(const Row& row) {
  const int64_t state_bytes = row.dtype == Dtype::kDouble ? 8 : 4;
  const auto fits = [](const void* array, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(array) % std::min<int64_t>(16, kUnit * bytes) == 0;
  };
  return fits(row.param, bytes_of(row.dtype)) && fits(row.grad, bytes_of(row.grad_dtype)) &&
         fits(row.first, state_bytes) && fits(row.second, state_bytes) && fits(row.copy, 2);
}

}  // namespace sparsekern
