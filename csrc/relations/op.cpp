// The operator pairs_by_hops on a GPU. Its schema and its definition, which is what a CPU runs, are
// in Python.

#ifdef COLLAMO_WITH_CUDA

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "../stream.h"
#include "cuda.h"

namespace collamo::cuda {
namespace {

constexpr Check check;

std::tuple<Tensor, Tensor, Tensor> pairs_by_hops(const Tensor& hops,
                                                 const std::optional<Tensor>& real) {
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

}  // namespace
}  // namespace collamo::cuda

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CUDA, m) {
  m.impl("pairs_by_hops", TORCH_BOX(&collamo::cuda::pairs_by_hops));
}

#endif  // COLLAMO_WITH_CUDA
