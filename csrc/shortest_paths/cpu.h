#pragma once

#include <cstdint>

#include "graphs.h"

namespace collamo::cpu {

// Writes the hops of every pair (see cpu.cpp) to `hops`: [B, padded, padded], or, with padded = -1,
// one n×n matrix after the other. `ptr` must have been checked: it starts at 0, never falls, and no
// molecule is larger than kMaxAtoms or than `padded`. Edges are checked here; throws
// std::invalid_argument.
void shortest_paths(const Graphs& graphs, int64_t padded, uint8_t* hops);

}  // namespace collamo::cpu
