// All-pairs hop counts of a batch of molecules on a GPU: the launches, each on the caller's stream.
//
// The order of calls: `survey`, `read_survey` (which waits for the device; left out while a CUDA
// graph is captured), `search`. Memory is the caller's, on the device. Edges stand molecule by
// molecule.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "graphs.h"

namespace collamo::cuda {

// What a batch may have.
struct Limits {
  int64_t atoms;  // of a molecule
  int64_t pairs;  // Σ n² exactly, or -1 for any number
};

// What a batch has.
struct Survey {
  bool wrong;       // an edge out of place or out of order, a falling ptr, a limit exceeded
  int64_t pairs;    // Σ n²
  int64_t largest;  // atoms of the largest molecule
  int64_t large;    // how many molecules are searched by a block, not by a warp
};

// Words of 64 bits that `survey` fills and `search` reads.
int64_t survey_words(const Graphs& graphs);

// Checks every number of the batch; trusts none of them and reads nothing out of bounds.
// trap: stop the kernel (a device error) if something is wrong, for when nobody reads the survey.
cudaError_t survey(const Graphs& graphs, const Limits& limits, bool trap, int64_t* words,
                   cudaStream_t stream);

cudaError_t read_survey(const Graphs& graphs, const int64_t* words, Survey* sizes,
                        cudaStream_t stream);

// The largest batch that the limits allow, for when the survey cannot be read.
Survey worst_case(const Graphs& graphs, const Limits& limits);

// Words of 64 bits that `search` works in, for molecules beyond 512 atoms; often 0.
int64_t scratch_words(const Survey& sizes);

// Writes hops [molecules, padded, padded], or [Σ n²] if padded is -1. `sizes` may be the worst
// case.
cudaError_t search(const Graphs& graphs, const Survey& sizes, int64_t padded, const int64_t* words,
                   int64_t* scratch, uint8_t* hops, cudaStream_t stream);

}  // namespace collamo::cuda
