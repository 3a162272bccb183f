// The Gaussians of a radial function and its head at a tile of places u, from which a table is
// made.
//
// The function and its derivatives by u go through the layers together, as neighbouring rows of one
// matrix [u, order, channel]. It never leaves the tile; the backward pass computes it again.
// collamo_kernels/radial has the formulas.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "bounds.h"
#include "layers.h"
#include "matrix.h"

namespace collamo::cpu {
namespace {

int64_t scratch_floats(const RadialModule& m) { return 5 * Buffers::floats(m); }

void rows(const RadialModule& m, const float* u, int64_t count, float* rows, float* slope_rows,
          float* scratch) {
  const Buffers buffers(m, scratch);
  const Shape shape{count, slope_rows ? 3 : 2};
  gaussians(m, u, shape, buffers.psi);
  const float* x = buffers.psi;
  if (m.layers == 2) {
    apply(m.first(), x, shape, buffers.a);
    activate(buffers.a, shape, whole_vectors(m.first().out), buffers.h);
    x = buffers.h;
  }
  apply(m.last(), x, shape, buffers.y);
  const int64_t heads = m.last().out, row = whole_vectors(heads);
  for (int64_t i = 0; i < count; ++i) {
    const float* y = buffers.y + i * shape.orders * row;
    for (int order = 0; order < 2; ++order) {
      std::memcpy(rows + (2 * i + order) * heads, y + order * row, heads * sizeof(float));
      if (!slope_rows) continue;
      std::memcpy(slope_rows + (2 * i + order) * heads, y + (order + 1) * row,
                  heads * sizeof(float));
    }
  }
}

// Adds the gradients of a layer's weight and bias: x [count, 2, in↑], grad [count, 2, row].
void layer_gradient(const RadialLayer& layer, const float* x, const float* grad, int64_t row,
                    int64_t count, float* weight, float* bias) {
  multiply(weight, {grad, 1, row}, x, layer.out, 2 * count, layer.in, true);
  for (int64_t j = 0; j < layer.out; ++j) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += grad[2 * i * row + j];
    bias[j] += sum;
  }
}

void gradients(const RadialModule& m, const float* u, int64_t count, const float* grad,
               const RadialGradients& to, float* scratch) {
  const Buffers buffers(m, scratch);
  const Shape shape{count, 2};
  gaussians(m, u, shape, buffers.psi);
  int64_t row = m.last().out;
  if (m.layers == 2) {
    const int64_t hidden = whole_vectors(m.first().out);
    apply(m.first(), buffers.psi, shape, buffers.a);
    activate(buffers.a, shape, hidden, buffers.h);
    layer_gradient(m.last(), buffers.h, grad, row, count, to.weight[1], to.bias[1]);
    multiply(buffers.grad, {grad, row, 1}, m.last().weight, shape.rows(), m.last().out, m.last().in,
             false);
    activate_gradient(buffers.a, count, hidden, buffers.grad);
    grad = buffers.grad, row = hidden;
  }
  layer_gradient(m.first(), buffers.psi, grad, row, count, to.weight[0], to.bias[0]);
  multiply(buffers.h, {grad, row, 1}, m.first().weight, shape.rows(), m.first().out, m.first().in,
           false);
  gaussians_gradient(m, u, count, buffers.h, to);
}

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const RadialKernels radial_kernels;
const RadialKernels radial_kernels{kCapability, W, scratch_floats, rows, gradients, bounds};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
