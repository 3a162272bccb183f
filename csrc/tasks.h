#pragma once

// Work cut into tasks, and memory for it.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace collamo::cpu {

// Memory that starts at a cache line.
class Floats {
 public:
  explicit Floats(int64_t count, bool zero = false) {
    const size_t bytes = std::max<int64_t>(count, 1) * sizeof(float);
    data_.reset(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
    if (zero) std::memset(data_.get(), 0, bytes);
  }
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

// Runs task(number, scratch) for all numbers below `tasks`, each thread with `floats` of scratch
// memory. A thread takes the next task when it is free, so a slow one does not hold up the rest.
template <typename Task>
void run_tasks(int64_t tasks, int64_t floats, const Task& task) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  std::vector<Floats> scratch;
  for (int64_t thread = 0; thread < threads; ++thread) scratch.emplace_back(floats);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t i = next++; i < tasks; i = next++) task(i, scratch[thread].get());
    }
  });
}

}  // namespace collamo::cpu
