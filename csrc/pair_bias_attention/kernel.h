#pragma once

#include <cstdint>

#include "../atoms.h"

namespace collamo::cpu {

// A call on packed molecules. Pairs are [H, P], each molecule's n² row-major, molecule after
// molecule; of bias and logits they are contiguous.
struct PairBiasCall {
  Atoms q, k, v;
  int64_t dim, pairs;  // D, P
  const float* bias;
  float scale;
  double dropout;
  uint64_t seed;
};

// A molecule and its heads first_head … last_head - 1.
struct PairBiasTask {
  int64_t molecule, first_atom, atoms, first_pair;
  int64_t first_head, last_head;
};

struct PairBiasResults {
  Atoms out;
  float* logits;  // may be the bias itself; nullptr if nobody asked
};

struct PairBiasGradients {
  Atoms out;            // dL/dout
  const float* logits;  // dL/dlogits, or nullptr
  Atoms q, k, v;
  float* bias;
};

// The same source compiled for one instruction set.
struct PairBiasKernels {
  const char* name;
  void (*forward)(const PairBiasCall&, const PairBiasResults&, const PairBiasTask&, float* scratch);
  void (*backward)(const PairBiasCall&, const PairBiasGradients&, const PairBiasTask&,
                   float* scratch);
  // Floats of scratch memory that a molecule of so many atoms needs, forward or backward.
  int64_t (*scratch_floats)(int64_t atoms, int64_t dim);
};

}  // namespace collamo::cpu
