// The operator shortest_paths; collamo_kernels/shortest_paths/op.py says what the arguments mean.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "../checks.h"
#include "cpu.h"
#ifdef COLLAMO_WITH_CUDA
#include "../stream.h"
#include "cuda.h"
#endif

namespace collamo {
namespace {

constexpr Check check;

void check_form(const Tensor& edge_index, const Tensor& ptr, bool packed,
                std::optional<int64_t> size) {
  check(edge_index.scalar_type() == ScalarType::Long, "edge_index must be int64");
  check(edge_index.dim() == 2 && edge_index.size(0) == 2, "edge_index must be [2, E]");
  check(ptr.scalar_type() == ScalarType::Long, "ptr must be int64");
  check(ptr.dim() == 1 && ptr.size(0) >= 1, "ptr must be [B + 1]");
  const int64_t least = size.value_or(0);
  check(least >= 0 && (packed || least <= kMaxAtoms), "size must be between 0 and 65535 atoms");
}

// The graphs of two contiguous tensors.
Graphs graphs_of(const Tensor& edges, const Tensor& ptr) {
  const auto* source = edges.const_data_ptr<int64_t>();
  const int64_t count = edges.size(1);
  return {source, source + count, count, ptr.const_data_ptr<int64_t>(), ptr.size(0) - 1};
}

// The result, not yet written: [B, N, N], or the packed pairs.
Tensor empty_hops(const Tensor& edges, int64_t molecules, bool packed, int64_t size) {
  return packed ? torch::stable::new_empty(edges, {size}, ScalarType::Byte)
                : torch::stable::new_empty(edges, {molecules, size, size}, ScalarType::Byte);
}

struct Sizes {
  int64_t pairs = 0;    // Σ n²
  int64_t largest = 0;  // atoms
};

Sizes check_ptr(const Graphs& graphs, int64_t limit) {
  const int64_t* ptr = graphs.ptr;
  check(ptr[0] == 0, "ptr must start at 0");
  Sizes sizes;
  for (int64_t b = 0; b < graphs.molecules; ++b) {
    const int64_t atoms = ptr[b + 1] - ptr[b];
    if (ptr[b + 1] < ptr[b] || atoms > limit) {
      throw std::invalid_argument("ptr gives molecule " + std::to_string(b) + " the atoms " +
                                  std::to_string(ptr[b]) + " to " + std::to_string(ptr[b + 1]) +
                                  "; it must never fall, and no molecule may have more than " +
                                  std::to_string(limit) + " atoms");
    }
    sizes.pairs += atoms * atoms;
    sizes.largest = std::max(sizes.largest, atoms);
  }
  return sizes;
}

Tensor shortest_paths_cpu(const Tensor& edge_index, const Tensor& ptr, bool packed,
                          std::optional<int64_t> size) {
  check_form(edge_index, ptr, packed, size);
  const Tensor edges = torch::stable::contiguous(edge_index);
  const Tensor ends = torch::stable::contiguous(ptr);
  const Graphs graphs = graphs_of(edges, ends);
  const Sizes sizes = check_ptr(graphs, packed ? kMaxAtoms : size.value_or(kMaxAtoms));
  const int64_t written = size.value_or(packed ? sizes.pairs : sizes.largest);
  check(!packed || written == sizes.pairs, "size must be the total number of pairs of atoms");
  const Tensor hops = empty_hops(edges, graphs.molecules, packed, written);
  cpu::shortest_paths(graphs, packed ? -1 : written, hops.mutable_data_ptr<uint8_t>());
  return hops;
}

#ifdef COLLAMO_WITH_CUDA

// Waits for the device once, for what is wrong with the data and how much there is. While a CUDA
// graph is captured nobody may wait: then the size must be given, and wrong data stop the kernel.
Tensor shortest_paths_cuda(const Tensor& edge_index, const Tensor& ptr, bool packed,
                           std::optional<int64_t> size) {
  using namespace cuda;
  check_form(edge_index, ptr, packed, size);
  check(on_device_of(ptr, edge_index), "ptr must be on the device of edge_index");
  const torch::stable::accelerator::DeviceGuard guard(edge_index.get_device_index());
  const cudaStream_t stream = current_stream(edge_index);
  const bool capturing = captured(stream);
  check(!capturing || size.has_value(), "size must be given while a CUDA graph is captured");
  const Tensor edges = torch::stable::contiguous(edge_index);
  const Tensor ends = torch::stable::contiguous(ptr);
  const Graphs graphs = graphs_of(edges, ends);
  check(graphs.molecules > 0 || graphs.edges == 0, "edge_index has edges, but ptr has no atoms");
  const Limits limits{packed ? kMaxAtoms : size.value_or(kMaxAtoms),
                      packed ? size.value_or(-1) : -1};
  const Tensor words = new_words(edges, survey_words(graphs));
  check_success(survey(graphs, limits, capturing, words.mutable_data_ptr<int64_t>(), stream));
  Survey batch = worst_case(graphs, limits);
  if (!capturing) {
    check_success(read_survey(graphs, words.const_data_ptr<int64_t>(), &batch, stream));
  }
  check(!batch.wrong,
        "edge_index or ptr is wrong: on a GPU edges stand molecule by molecule, ptr rises from 0, "
        "no molecule has more atoms than size, and packed size is the number of pairs");
  const int64_t written = size.value_or(packed ? batch.pairs : batch.largest);
  const Tensor hops = empty_hops(edges, graphs.molecules, packed, written);
  const Tensor scratch = new_words(edges, scratch_words(batch));
  check_success(search(graphs, batch, packed ? -1 : written, words.const_data_ptr<int64_t>(),
                       scratch.mutable_data_ptr<int64_t>(), hops.mutable_data_ptr<uint8_t>(),
                       stream));
  return hops;
}

#endif  // COLLAMO_WITH_CUDA

}  // namespace
}  // namespace collamo

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def("shortest_paths(Tensor edge_index, Tensor ptr, bool packed, SymInt? size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("shortest_paths", TORCH_BOX(&collamo::shortest_paths_cpu));
}

#ifdef COLLAMO_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CUDA, m) {
  m.impl("shortest_paths", TORCH_BOX(&collamo::shortest_paths_cuda));
}
#endif
