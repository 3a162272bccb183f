// The operators occurring_distances, for the CPU, and pairs_by_hops, for a GPU. Python has the
// schema of pairs_by_hops and its definition, which a CPU runs. collamo_kernels/relations/op.py
// says what the arguments mean.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "../pairwise_distances/cpu.h"
#ifdef COLLAMO_WITH_CUDA
#include "../stream.h"
#include "cuda.h"
#endif

namespace collamo {
namespace {

constexpr Check check;

Tensor occurring_distances(const Tensor& coordinates, const Tensor& real, const Tensor& sizes,
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
  const cpu::PackedPositions positions{x.const_data_ptr<float>(),
                                       static_cast<const uint8_t*>(valid.const_data_ptr()), size,
                                       counts.size(0)};
  cpu::occurring_distances(positions, static_cast<float>(high), parts,
                           static_cast<uint8_t*>(occurring.mutable_data_ptr()));
  return occurring;
}

#ifdef COLLAMO_WITH_CUDA

std::tuple<Tensor, Tensor, Tensor> pairs_by_hops(const Tensor& hops,
                                                 const std::optional<Tensor>& real) {
  using namespace cuda;
  check(fits(hops, ScalarType::Byte, {kAny}), "hops must be uint8 [P]");
  const int64_t pairs = hops.size(0);
  check(!real || (fits(*real, ScalarType::Bool, {pairs}) && on_device_of(*real, hops)),
        "real must be bool [P] on the device of hops");
  const torch::stable::accelerator::DeviceGuard guard(hops.get_device_index());
  const Tensor bytes = torch::stable::contiguous(hops);
  const Tensor kept = real ? torch::stable::contiguous(*real) : bytes;
  const Tensor words = new_words(bytes, sort_words(pairs));
  const Tensor order = new_words(bytes, pairs), starts = new_words(bytes, kBins);
  const Tensor keys =
      torch::stable::new_empty(bytes, {pairs}, real ? ScalarType::Short : ScalarType::Byte);
  check_success(sort_pairs(bytes.const_data_ptr<uint8_t>(),
                           real ? static_cast<const uint8_t*>(kept.const_data_ptr()) : nullptr,
                           pairs, words.mutable_data_ptr<int64_t>(),
                           order.mutable_data_ptr<int64_t>(), keys.mutable_data_ptr(),
                           starts.mutable_data_ptr<int64_t>(), current_stream(bytes)));
  return {order, keys, starts};
}

#endif  // COLLAMO_WITH_CUDA

}  // namespace
}  // namespace collamo

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def(
      "occurring_distances(Tensor coordinates, Tensor real, Tensor sizes, float high, int parts) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("occurring_distances", TORCH_BOX(&collamo::occurring_distances));
}

#ifdef COLLAMO_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CUDA, m) {
  m.impl("pairs_by_hops", TORCH_BOX(&collamo::pairs_by_hops));
}
#endif
