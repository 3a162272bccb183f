#pragma once

#include <cstdint>

namespace collamo::cpu {

// Rows of weights are padded with 0 to whole vectors, so that rows of products are whole vectors
// too.
struct RadialLayer {
  const float* weight;      // [out, in↑], for gradients alone
  const float* transposed;  // [in, out↑]
  const float* bias;        // [out↑]
  int64_t in, out;
};

// Φ3d(u) = W ψ(u) + b, or W₂ GELU(W₁ ψ(u) + b₁) + b₂ with two layers.
struct RadialModule {
  const float* centre;  // [K↑], Å
  const float* width;   // [K↑], Å; 1 in the padding
  RadialLayer layer[2];
  int layers;

  const RadialLayer& first() const { return layer[0]; }
  const RadialLayer& last() const { return layer[layers - 1]; }
};

// Sums of gradients, in the shapes of the module; weights are [out, in↑].
struct RadialGradients {
  float *centre, *width;
  float *weight[2], *bias[2];
};

// Places u to work on at a time: their activations stay in L2.
constexpr int64_t kRadialTile = 32;

// The same source compiled for one instruction set. `scratch` has room for `scratch_floats`.
struct RadialKernels {
  const char* name;
  int64_t width;
  int64_t (*scratch_floats)(const RadialModule&);
  // Value and slope [count, 2, H] of Φ3d at each u and, unless nullptr, slope and curvature.
  void (*rows)(const RadialModule&, const float* u, int64_t count, float* rows, float* slope_rows,
               float* scratch);
  // Adds the gradients of Σ grad · rows.
  void (*gradients)(const RadialModule&, const float* u, int64_t count, const float* grad,
                    const RadialGradients&, float* scratch);
  // For |u - centres[m]| ≤ reach and n = 4 … last: bounds [count, last - 3] of |Φ⁽ⁿ⁾| of every
  // head, and of max_k |ψ⁗| [count]. The module holds the absolute values of the weights.
  void (*bounds)(const RadialModule&, const float* centres, int64_t count, float reach, int last,
                 float* bounds, float* gaussian, float* scratch);
};

}  // namespace collamo::cpu
