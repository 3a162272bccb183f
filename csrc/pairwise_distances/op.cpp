// The operators pairwise_distances and pairwise_distances_backward;
// collamo_kernels/pairwise_distances/op.py says what the arguments mean.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../checks.h"
#include "cpu.h"

namespace collamo::cpu {
namespace {

constexpr Check check;

// The tensors that `positions` points into.
struct Molecules {
  Tensor coordinates;
  std::optional<Tensor> valid;

  Molecules(const Tensor& x, const std::optional<Tensor>& real)
      : coordinates(torch::stable::contiguous(x)) {
    check(fits(x, ScalarType::Float, {kAny, kAny, 3}), "coordinates must be float32 [B, N, 3]");
    if (!real) return;
    check(fits(*real, ScalarType::Bool, {x.size(0), x.size(1)}), "valid must be bool [B, N]");
    valid = torch::stable::contiguous(*real);
  }

  Positions positions() const {
    return {coordinates.const_data_ptr<float>(),
            valid ? static_cast<const uint8_t*>(valid->const_data_ptr()) : nullptr,
            coordinates.size(0), coordinates.size(1)};
  }
};

Tensor distances_of(const Tensor& coordinates, const std::optional<Tensor>& valid) {
  const Molecules molecules(coordinates, valid);
  const int64_t atoms = coordinates.size(1);
  const Tensor distances =
      torch::stable::new_empty(coordinates, {coordinates.size(0), atoms, atoms});
  pairwise_distances(molecules.positions(), distances.mutable_data_ptr<float>());
  return distances;
}

Tensor coordinate_gradient(const Tensor& grad, const Tensor& coordinates,
                           const std::optional<Tensor>& valid) {
  const Molecules molecules(coordinates, valid);
  const int64_t count = coordinates.size(0), atoms = coordinates.size(1);
  check(fits(grad, ScalarType::Float, {count, atoms, atoms}), "grad must be float32 [B, N, N]");
  const Tensor incoming = torch::stable::contiguous(grad);
  const Tensor gradient = torch::stable::new_empty(coordinates, {count, atoms, 3});
  pairwise_distances_backward(molecules.positions(), incoming.const_data_ptr<float>(),
                              gradient.mutable_data_ptr<float>());
  return gradient;
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def("pairwise_distances(Tensor coordinates, Tensor? valid) -> Tensor");
  m.def("pairwise_distances_backward(Tensor grad, Tensor coordinates, Tensor? valid) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("pairwise_distances", TORCH_BOX(&collamo::cpu::distances_of));
  m.impl("pairwise_distances_backward", TORCH_BOX(&collamo::cpu::coordinate_gradient));
}
