// The operators radial_rows, radial_rows_backward and radial_grid: the knots of a radial table and
// where they have to be.

#include <torch/csrc/stable/library.h>

#include "cpu.h"

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def(
      "radial_rows(Tensor u, Tensor? used, Tensor centre, Tensor width, Tensor weight, "
      "Tensor bias, Tensor? weight2, Tensor? bias2, bool curvature) -> "
      "(Tensor rows, Tensor slope_rows)");
  m.def(
      "radial_rows_backward(Tensor grad, Tensor u, Tensor? used, Tensor centre, Tensor width, "
      "Tensor weight, Tensor bias, Tensor? weight2, Tensor? bias2) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "radial_grid(Tensor centre, Tensor width, Tensor weight, Tensor bias, Tensor? weight2, "
      "Tensor? bias2, Tensor? occurring, float first, float last, float low, float block, "
      "int blocks, int slopes, float tolerance, float slack, float share, int most) -> "
      "(Tensor u, Tensor first_knot, Tensor errors, Tensor used)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("radial_rows", TORCH_BOX(&collamo::cpu::radial::radial_rows));
  m.impl("radial_rows_backward", TORCH_BOX(&collamo::cpu::radial::radial_rows_backward));
  m.impl("radial_grid", TORCH_BOX(&collamo::cpu::radial::radial_grid));
}
