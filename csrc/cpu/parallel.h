// Work on all of torch's threads, in tasks that write disjoint outputs.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace sparsekern {

// Below this many multiply-adds (or elements moved) a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 16;

inline int64_t thread_count() { return int64_t(torch::stable::get_num_threads()); }

// Calls task(index, slot) for every index below `tasks`; slot < thread_count() names the private
// scratch of the calling thread. Threads take the next index when they are free, so a core that
// another process slows down does less. SAFETY: results do not depend on who runs a task as long
// as tasks write disjoint elements in an order of their own.
template <typename Task>
void parallel_tasks(int64_t tasks, int64_t work, const Task& task) {
  const int64_t threads = work < kSerialWork ? 1 : std::min(thread_count(), tasks);
  if (threads <= 1) {
    for (int64_t index = 0; index < tasks; ++index) task(index, int64_t(0));
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    for (int64_t index = next.fetch_add(1); index < tasks; index = next.fetch_add(1))
      task(index, slot);
  });
}

// Calls body(begin, end) over pieces of [0, size).
template <typename Body>
void parallel_range(int64_t size, const Body& body) {
  if (size == 0) return;
  torch::stable::parallel_for(0, size, kSerialWork, body);
}

}  // namespace sparsekern
