// Cuts the attention with a pair bias into tasks, and chooses the instruction set that runs them.
//
// A task owns all it writes, so any number of threads gives the same bits.

#include "cpu.h"

#include <algorithm>
#include <vector>

#include "../capability.h"
#include "../tasks.h"

namespace collamo::cpu {

COLLAMO_DECLARE_TABLES(PairBiasKernels, pair_bias_kernels)

namespace {

// Two heads of 8 are a cache line of q, k, v and their gradients.
constexpr int64_t kHeadsPerTask = 2;

const PairBiasKernels& kernels() {
  static const PairBiasKernels& table = widest<PairBiasKernels>(COLLAMO_TABLES(pair_bias_kernels));
  return table;
}

// Large molecules first, so that no thread ends up with one at the end.
std::vector<PairBiasTask> tasks_of(const PackedMolecules& molecules) {
  std::vector<PairBiasTask> tasks;
  int64_t first_pair = 0;
  for (int64_t b = 0; b < molecules.count; ++b) {
    const int64_t first = molecules.ends[b], atoms = molecules.ends[b + 1] - first;
    for (int64_t head = 0; head < molecules.heads; head += kHeadsPerTask) {
      const int64_t last = std::min(head + kHeadsPerTask, molecules.heads);
      tasks.push_back({b, first, atoms, first_pair, head, last});
    }
    first_pair += atoms * atoms;
  }
  const auto larger = [](const PairBiasTask& a, const PairBiasTask& b) {
    return a.atoms > b.atoms;
  };
  std::stable_sort(tasks.begin(), tasks.end(), larger);
  return tasks;
}

template <typename Run>
void run(const PairBiasCall& call, const PackedMolecules& molecules, const Run& run_task) {
  const std::vector<PairBiasTask> tasks = tasks_of(molecules);
  const int64_t largest = tasks.empty() ? 0 : tasks.front().atoms;
  run_tasks(static_cast<int64_t>(tasks.size()), kernels().scratch_floats(largest, call.dim),
            [&](int64_t i, float* scratch) { run_task(tasks[i], scratch); });
}

}  // namespace

void pair_bias_attention(const PairBiasCall& call, const PackedMolecules& molecules,
                         const PairBiasResults& results) {
  run(call, molecules, [&](const PairBiasTask& task, float* scratch) {
    kernels().forward(call, results, task, scratch);
  });
}

void pair_bias_attention_backward(const PairBiasCall& call, const PackedMolecules& molecules,
                                  const PairBiasGradients& gradients) {
  run(call, molecules, [&](const PairBiasTask& task, float* scratch) {
    kernels().backward(call, gradients, task, scratch);
  });
}

}  // namespace collamo::cpu
