// The device code of the update ops, compiled for the host and run thread after thread. Called by
// tests/cuda/on_host.py through ctypes.
#include "../../csrc/cuda/update/masked_adamw.cuh"
#include "../../csrc/cuda/update/masked_norm.cuh"
#include "../../csrc/cuda/update/masked_sgd.cuh"

using namespace sparsekern;

namespace {

struct HostTensor {
  void *param, *grad, *first, *second, *copy;
  const uint8_t* bits;
  int64_t count;
  const void* step;
  int32_t step_is_double, dtype, grad_dtype, copy_is_half, is_start;
};

std::vector<Row> rows_of(const HostTensor* tensors, int64_t length) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < length; ++i) {
    const HostTensor& t = tensors[i];
    Row row;
    row.param = t.param;
    row.grad = t.grad;
    row.first = t.first;
    row.second = t.second;
    row.copy = t.copy;
    row.bits = t.bits;
    row.count = t.count;
    row.step = Scalar{t.step, 0, t.step_is_double != 0};
    row.dtype = Dtype(t.dtype);
    row.grad_dtype = Dtype(t.grad_dtype);
    row.copy_is_half = t.copy_is_half != 0;
    row.is_start = t.is_start != 0;
    row.is_aligned = is_aligned(row);
    rows.push_back(row);
  }
  return rows;
}

template <typename Step>
void run(Step, const Table& table, int32_t chunks, const typename Step::Options& options) {
  run_update<Step>(table, chunks, options, nullptr);
}

}  // namespace

extern "C" {

void adamw_on_host(const HostTensor* tensors, int64_t length, const Scalar* scalars,
                   const double* numbers, const bool* flags) {
  AdamwOptions o;
  o.factor = scalars[0];
  o.found_inf = scalars[1];
  o.rate = scalars[2];
  o.beta1 = numbers[0];
  o.beta2 = numbers[1];
  o.eps = numbers[2];
  o.weight_decay = numbers[3];
  o.decoupled = flags[0];
  o.maximize = flags[1];
  o.clear = flags[2];
  launch_steps<AdamwStep>(rows_of(tensors, length), o,
                          [](auto step, const Table& table, int32_t chunks,
                             const AdamwOptions& options) { run(step, table, chunks, options); });
}

void sgd_on_host(const HostTensor* tensors, int64_t length, const Scalar* scalars,
                 const double* numbers, const bool* flags) {
  SgdOptions o;
  o.factor = scalars[0];
  o.found_inf = scalars[1];
  o.rate = scalars[2];
  o.momentum = numbers[0];
  o.dampening = numbers[1];
  o.weight_decay = numbers[2];
  o.nesterov = flags[0];
  o.maximize = flags[1];
  o.clear = flags[2];
  launch_steps<SgdStep>(rows_of(tensors, length), o,
                        [](auto step, const Table& table, int32_t chunks,
                           const SgdOptions& options) { run(step, table, chunks, options); });
}

double norm_on_host(const HostTensor* tensors, int64_t length, const Scalar* factor) {
  const std::vector<Row> rows = rows_of(tensors, length);
  std::vector<double> partial(size_t(count_chunks(rows)));
  launch_norm(rows, [&](auto gradient, const Table& table, int32_t chunks, int64_t first) {
    run_norm<decltype(gradient)>(table, chunks, *factor, partial.data() + first, nullptr);
  });
  double norm = 0;
  run_norm_final(partial.data(), int64_t(partial.size()), &norm, nullptr);
  return norm;
}

// How often the work of a launch names each weight of each tensor: `seen` holds them one after the
// other. Returns how many launches there were, or -1 where a chunk or weight lies outside.
int64_t walk_on_host(const int64_t* counts, int64_t length, int64_t* launches_rows, int32_t* seen) {
  std::vector<Row> rows(static_cast<size_t>(length));
  int64_t offset = 0, launches = 0;
  bool is_inside = true;
  for (int64_t i = 0; i < length; ++i) {
    rows[i].count = counts[i];
    rows[i].copy = seen + offset;  // names the tensor
    offset += counts[i];
  }
  for_each_table(rows, [&](const Table& table, int32_t chunks) {
    launches_rows[launches++] = table.rows;
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const int found = table.find(chunk);
      is_inside &= found >= 0 && found < table.rows && table.first_chunk[found] <= chunk;
      const Row& row = table.row[found];
      for (int thread = 0; thread < kThreads; ++thread) {
        const int64_t first = first_weight(table, found, chunk, thread);
        for (int u = 0; u < kUnits; ++u) {
          const Place place = place_of<false>(row, first, u, 0);
          for (int k = 0; k < place.count; ++k) {
            is_inside &= place.i >= 0 && place.i + k < row.count;
            ++static_cast<int32_t*>(row.copy)[place.i + k];
          }
        }
      }
    }
  });
  return is_inside ? launches : -1;
}

int64_t chunk_weights() { return kChunk; }
int64_t rows_of_a_launch() { return kRows; }

// Sizes that a kernel's arguments take together; at most 4096 bytes where CUDA is older than 12.1.
int64_t argument_bytes() {
  return int64_t(sizeof(Table) + std::max(sizeof(AdamwOptions), sizeof(SgdOptions)));
}
}
