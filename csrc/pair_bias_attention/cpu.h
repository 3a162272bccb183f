#pragma once

#include <cstdint>

#include "kernel.h"

namespace collamo::cpu {

// Molecules laid end to end: the atoms of molecule b are ends[b] to ends[b + 1].
struct PackedMolecules {
  const int32_t* ends;  // [count + 1]
  int64_t count, heads;
};

// Writes the results of every real pair and atom.
void pair_bias_attention(const PairBiasCall& call, const PackedMolecules& molecules,
                         const PairBiasResults& results);

// Writes the gradients of q, k, v and bias.
void pair_bias_attention_backward(const PairBiasCall& call, const PackedMolecules& molecules,
                                  const PairBiasGradients& gradients);

}  // namespace collamo::cpu
