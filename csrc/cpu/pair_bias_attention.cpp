// Which instruction set runs the attention with a pair bias, and which task does what.
//
// A task owns all that it writes, so any number of threads gives the same bits.

#include "pair_bias_attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "coattention.h"
#include "tasks.h"

namespace collamo::cpu {

namespace baseline {
extern const PairBiasKernels pair_bias_kernels;
}
#ifdef COLLAMO_WITH_X86
namespace avx2 {
extern const PairBiasKernels pair_bias_kernels;
}
namespace avx512 {
extern const PairBiasKernels pair_bias_kernels;
}
#endif

namespace {

// Two heads of 8 are a cache line of q, k, v and their gradients.
constexpr int64_t kHeadsPerTask = 2;

// Those of the instruction set that runs coattention.
const PairBiasKernels& pair_bias_kernels() {
#ifdef COLLAMO_WITH_X86
  for (const PairBiasKernels* wide : {&avx512::pair_bias_kernels, &avx2::pair_bias_kernels}) {
    if (std::strcmp(wide->name, kernels().name) == 0) return *wide;
  }
#endif
  return baseline::pair_bias_kernels;
}

// Large molecules first, so that no thread is left with one at the end.
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
  const int64_t most = tasks.empty() ? 0 : tasks.front().atoms;
  run_tasks(static_cast<int64_t>(tasks.size()), pair_bias_kernels().scratch_floats(most, call.dim),
            [&](int64_t i, float* scratch) { run_task(tasks[i], scratch); });
}

}  // namespace

void pair_bias_attention(const PairBiasCall& call, const PackedMolecules& molecules,
                         const PairBiasResults& results) {
  run(call, molecules, [&](const PairBiasTask& task, float* scratch) {
    pair_bias_kernels().forward(call, results, task, scratch);
  });
}

void pair_bias_attention_backward(const PairBiasCall& call, const PackedMolecules& molecules,
                                  const PairBiasGradients& gradients) {
  run(call, molecules, [&](const PairBiasTask& task, float* scratch) {
    pair_bias_kernels().backward(call, gradients, task, scratch);
  });
}

}  // namespace collamo::cpu
