// The operators pairwise_distances, pairwise_distances_backward and occurring_distances;
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

Tensor occurring_parts(const Tensor& coordinates, const Tensor& real, const Tensor& sizes,
                       double high, int64_t parts) {
  check(fits(coordinates, ScalarType::Float, {kAny, 3}), "coordinates must be float32 [T, 3]");
  const int64_t atoms = coordinates.size(0);
  check(fits(real, ScalarType::Bool, {atoms}), "real must be bool [T]");
  check(fits(sizes, ScalarType::Long, {kAny}), "sizes must be int64 [B]");
  check(parts >= 1, "parts must be at least 1");
  const Tensor x = torch::stable::contiguous(coordinates);
  const Tensor valid = torch::stable::contiguous(real), counts = torch::stable::contiguous(sizes);
  const int64_t* size = counts.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t b = 0; b < counts.size(0); ++b) {
    check(size[b] >= 0 && size[b] <= atoms, "sizes must not be negative");
    total += size[b];
  }
  check(total == atoms, "sizes must add up to the number of atoms");
  Tensor occurring = torch::stable::new_empty(coordinates, {parts}, ScalarType::Bool);
  const PackedPositions positions{x.const_data_ptr<float>(),
                                  static_cast<const uint8_t*>(valid.const_data_ptr()), size,
                                  counts.size(0)};
  occurring_distances(positions, static_cast<float>(high), parts,
                      static_cast<uint8_t*>(occurring.mutable_data_ptr()));
  return occurring;
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def("pairwise_distances(Tensor coordinates, Tensor? valid) -> Tensor");
  m.def("pairwise_distances_backward(Tensor grad, Tensor coordinates, Tensor? valid) -> Tensor");
  m.def(
      "occurring_distances(Tensor coordinates, Tensor real, Tensor sizes, float high, int parts) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("pairwise_distances", TORCH_BOX(&collamo::cpu::distances_of));
  m.impl("pairwise_distances_backward", TORCH_BOX(&collamo::cpu::coordinate_gradient));
  m.impl("occurring_distances", TORCH_BOX(&collamo::cpu::occurring_parts));
}
