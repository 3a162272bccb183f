// A batch of graphs, PyG style.

#pragma once

#include <cstdint>

namespace collamo {

constexpr int64_t kMaxAtoms = 65535;  // of one molecule; the kernels keep atom numbers in 16 bits

// Edge e goes from atom source[e] to atom target[e], and molecule b has the atoms
// ptr[b] … ptr[b + 1] - 1.
struct Graphs {
  const int64_t* source;
  const int64_t* target;
  int64_t edges;
  const int64_t* ptr;
  int64_t molecules;
};

}  // namespace collamo
