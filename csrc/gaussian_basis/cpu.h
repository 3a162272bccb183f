#pragma once

#include <cstdint>

namespace collamo::cpu {

// Places u and K normal densities.
struct GaussianBasis {
  const float* u;       // [places]
  const float* centre;  // [K]
  const float* width;   // [K]
  int64_t places, count;
};

// Writes the densities at every place, [places, K].
void gaussian_basis(const GaussianBasis& basis, float* out);

// Writes the gradients of u, centre and width for dL/dout `grad`.
void gaussian_basis_backward(const GaussianBasis& basis, const float* grad, float* du,
                             float* dcentre, float* dwidth);

}  // namespace collamo::cpu
