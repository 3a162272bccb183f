#pragma once

#include <cstdint>

namespace collamo::cpu {

// K normal densities; rows are whole vectors, with width 1 in the padding.
struct Gaussians {
  const float* centre;
  const float* width;
  const float* peak;  // 1 / (√(2π)·width)
  int64_t count;
};

// The same source compiled for one instruction set.
struct GaussianKernels {
  const char* name;
  int64_t width;
  // out [places, K]: the densities at u.
  void (*forward)(const Gaussians&, const float* u, int64_t places, float* out);
  // For dL/dout `grad`: writes the gradient of u, and adds those of centre and width, each times
  // the width, to `sums` [2, K↑]. `scratch` is as large.
  void (*backward)(const Gaussians&, const float* u, int64_t places, const float* grad, float* du,
                   float* sums, float* scratch);
};

}  // namespace collamo::cpu
