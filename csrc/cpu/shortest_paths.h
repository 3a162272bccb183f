#pragma once

#include <cstdint>

namespace collamo::cpu {

// A batch of graphs, PyG style: edge e goes from atom source[e] to atom target[e], and molecule b
// has the atoms ptr[b] … ptr[b + 1] - 1.
struct Graphs {
  const int64_t* source;
  const int64_t* target;
  int64_t edges;
  const int64_t* ptr;
  int64_t molecules;
};

// Writes the hops of every pair (see shortest_paths.cpp) to `hops`: [B, padded, padded], or, with
// padded = -1, one n×n matrix after the other. `ptr` must have been checked: it starts at 0, never
// falls, and no molecule is larger than 65,535 or than `padded`. Edges are checked here; throws
// std::invalid_argument.
void shortest_paths(const Graphs& graphs, int64_t padded, uint8_t* hops);

}  // namespace collamo::cpu
