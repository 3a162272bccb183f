// Operator schemas and the checks that keep the kernels safe, on LibTorch's stable ABI: one binary
// serves every torch from TORCH_TARGET_VERSION on. The Python functions check first, with
// friendlier errors; these checks stand for callers who come in through torch.ops.

#ifdef COLLAMO_WITH_CUDA
#define USE_CUDA  // the shim then declares the current stream
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/neighbour_sum.h"
#include "cpu/pairwise_distances.h"
#include "cpu/shortest_paths.h"
#ifdef COLLAMO_WITH_CUDA
#include "cuda/shortest_paths.h"
#include "cuda/sorted_pairs.h"
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxAtoms = 65535;  // of one molecule; the kernels keep atom numbers in 16 bits

void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

void check_form(const Tensor& edge_index, const Tensor& ptr, bool packed,
                std::optional<int64_t> size) {
  check(edge_index.scalar_type() == ScalarType::Long, "edge_index must be int64");
  check(edge_index.dim() == 2 && edge_index.size(0) == 2, "edge_index must be [2, E]");
  check(ptr.scalar_type() == ScalarType::Long, "ptr must be int64");
  check(ptr.dim() == 1 && ptr.size(0) >= 1, "ptr must be [B + 1]");
  const int64_t least = size.value_or(0);
  check(least >= 0 && (packed || least <= kMaxAtoms), "size must be between 0 and 65535 atoms");
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

Sizes check_ptr(const int64_t* ptr, int64_t molecules, int64_t limit) {
  check(ptr[0] == 0, "ptr must start at 0");
  Sizes sizes;
  for (int64_t b = 0; b < molecules; ++b) {
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

Tensor shortest_paths(const Tensor& edge_index, const Tensor& ptr, bool packed,
                      std::optional<int64_t> size) {
  check_form(edge_index, ptr, packed, size);
  const Tensor edges = torch::stable::contiguous(edge_index);
  const Tensor ends = torch::stable::contiguous(ptr);
  const auto* source = edges.const_data_ptr<int64_t>();
  const int64_t count = edges.size(1), molecules = ends.size(0) - 1;
  const collamo::cpu::Graphs graphs{source, source + count, count, ends.const_data_ptr<int64_t>(),
                                    molecules};
  const Sizes sizes =
      check_ptr(graphs.ptr, molecules, packed ? kMaxAtoms : size.value_or(kMaxAtoms));
  const int64_t written = size.value_or(packed ? sizes.pairs : sizes.largest);
  check(!packed || written == sizes.pairs, "size must be the total number of pairs of atoms");
  const Tensor hops = empty_hops(edges, molecules, packed, written);
  collamo::cpu::shortest_paths(graphs, packed ? -1 : written, hops.mutable_data_ptr<uint8_t>());
  return hops;
}

// The tensors that `positions` points into.
struct Molecules {
  Tensor coordinates;
  std::optional<Tensor> valid;

  Molecules(const Tensor& x, const std::optional<Tensor>& real)
      : coordinates(torch::stable::contiguous(x)) {
    check(x.scalar_type() == ScalarType::Float && x.dim() == 3 && x.size(2) == 3,
          "coordinates must be float32 [B, N, 3]");
    if (!real) return;
    check(real->scalar_type() == ScalarType::Bool && real->dim() == 2 &&
              real->size(0) == x.size(0) && real->size(1) == x.size(1),
          "valid must be bool [B, N]");
    valid = torch::stable::contiguous(*real);
  }

  collamo::cpu::Positions positions() const {
    return {coordinates.const_data_ptr<float>(),
            valid ? static_cast<const uint8_t*>(valid->const_data_ptr()) : nullptr,
            coordinates.size(0), coordinates.size(1)};
  }
};

Tensor pairwise_distances(const Tensor& coordinates, const std::optional<Tensor>& valid) {
  const Molecules molecules(coordinates, valid);
  const int64_t atoms = coordinates.size(1);
  const Tensor distances =
      torch::stable::new_empty(coordinates, {coordinates.size(0), atoms, atoms});
  collamo::cpu::pairwise_distances(molecules.positions(), distances.mutable_data_ptr<float>());
  return distances;
}

Tensor pairwise_distances_backward(const Tensor& grad, const Tensor& coordinates,
                                   const std::optional<Tensor>& valid) {
  const Molecules molecules(coordinates, valid);
  const int64_t count = coordinates.size(0), atoms = coordinates.size(1);
  check(grad.scalar_type() == ScalarType::Float && grad.dim() == 3 && grad.size(0) == count &&
            grad.size(1) == atoms && grad.size(2) == atoms,
        "grad must be float32 [B, N, N]");
  const Tensor from = torch::stable::contiguous(grad);
  const Tensor gradient = torch::stable::new_empty(coordinates, {count, atoms, 3});
  collamo::cpu::pairwise_distances_backward(molecules.positions(), from.const_data_ptr<float>(),
                                            gradient.mutable_data_ptr<float>());
  return gradient;
}

// The tensors that `edges` and `rows` point into, checked: every number is a row that exists.
struct Messages {
  Tensor x, table, source, kind, ptr;
  bool relu;

  Messages(const Tensor& nodes, const Tensor& kinds, const Tensor& from, const Tensor& of,
           const Tensor& ends, bool rectified)
      : x(torch::stable::contiguous(nodes)),
        table(torch::stable::contiguous(kinds)),
        source(torch::stable::contiguous(from)),
        kind(torch::stable::contiguous(of)),
        ptr(torch::stable::contiguous(ends)),
        relu(rectified) {
    check(x.scalar_type() == ScalarType::Float && x.dim() == 2, "x must be float32 [N, C]");
    check(
        table.scalar_type() == ScalarType::Float && table.dim() == 2 && table.size(1) == x.size(1),
        "table must be float32 [K, C]");
    check_numbers(source, x.size(0), "source must be int64 [E], rows of x");
    check_numbers(kind, table.size(0), "kind must be int64 [E], rows of table");
    check(kind.size(0) == source.size(0), "kind must be as long as source");
    check(ptr.scalar_type() == ScalarType::Long && ptr.dim() == 1 && ptr.size(0) >= 1,
          "ptr must be int64 [M + 1]");
    const auto* first = ptr.const_data_ptr<int64_t>();
    const int64_t last = ptr.size(0) - 1;
    check(first[0] == 0 && first[last] == source.size(0) && std::is_sorted(first, first + last + 1),
          "ptr must rise from 0 to the number of edges");
  }

  static void check_numbers(const Tensor& numbers, int64_t limit, const char* message) {
    check(numbers.scalar_type() == ScalarType::Long && numbers.dim() == 1, message);
    const auto* first = numbers.const_data_ptr<int64_t>();
    const auto inside = [limit](int64_t n) { return n >= 0 && n < limit; };
    check(std::all_of(first, first + numbers.size(0), inside), message);
  }

  collamo::cpu::SortedEdges edges() const {
    return {source.const_data_ptr<int64_t>(), kind.const_data_ptr<int64_t>(),
            ptr.const_data_ptr<int64_t>(), source.size(0), ptr.size(0) - 1};
  }

  collamo::cpu::Rows rows() const {
    return {x.const_data_ptr<float>(),
            table.const_data_ptr<float>(),
            x.size(0),
            table.size(0),
            x.size(1),
            relu};
  }
};

Tensor neighbour_sum(const Tensor& x, const Tensor& table, const Tensor& source, const Tensor& kind,
                     const Tensor& ptr, const std::optional<Tensor>& receiver,
                     const std::optional<Tensor>& scale, bool relu) {
  const Messages messages(x, table, source, kind, ptr, relu);
  const int64_t nodes = ptr.size(0) - 1;
  std::optional<Tensor> itself;
  if (receiver) {
    itself = torch::stable::contiguous(*receiver);
    Messages::check_numbers(*itself, x.size(0), "receiver must be int64 [M], rows of x");
    check(itself->size(0) == nodes, "receiver must be [M], where ptr is [M + 1]");
  }
  check(!scale || (scale->scalar_type() == ScalarType::Float && scale->numel() == 1),
        "scale must be one float32");
  check(!scale || receiver || x.size(0) == nodes,
        "x must have a row for each of the nodes of ptr, or receiver say which");
  const Tensor sums = torch::stable::new_empty(messages.x, {nodes, x.size(1)});
  collamo::cpu::neighbour_sum(
      messages.edges(), messages.rows(), itself ? itself->const_data_ptr<int64_t>() : nullptr,
      scale ? scale->const_data_ptr<float>() : nullptr, sums.mutable_data_ptr<float>());
  return sums;
}

std::tuple<Tensor, Tensor> neighbour_sum_backward(const Tensor& grad, const Tensor& x,
                                                  const Tensor& table, const Tensor& source,
                                                  const Tensor& kind, const Tensor& ptr,
                                                  bool relu) {
  const Messages messages(x, table, source, kind, ptr, relu);
  check(grad.scalar_type() == ScalarType::Float && grad.dim() == 2 &&
            grad.size(0) == ptr.size(0) - 1 && grad.size(1) == x.size(1),
        "grad must be float32 [M, C]");
  const Tensor from = torch::stable::contiguous(grad);
  const Tensor of_x = torch::stable::empty_like(messages.x);
  const Tensor of_table = torch::stable::empty_like(messages.table);
  collamo::cpu::neighbour_sum_backward(messages.edges(), messages.rows(),
                                       from.const_data_ptr<float>(), of_x.mutable_data_ptr<float>(),
                                       of_table.mutable_data_ptr<float>());
  return {of_x, of_table};
}

Tensor occurring_distances(const Tensor& coordinates, const Tensor& real, const Tensor& sizes,
                           double high, int64_t parts) {
  check(coordinates.scalar_type() == ScalarType::Float && coordinates.dim() == 2 &&
            coordinates.size(1) == 3,
        "coordinates must be float32 [T, 3]");
  const int64_t atoms = coordinates.size(0);
  check(real.scalar_type() == ScalarType::Bool && real.dim() == 1 && real.size(0) == atoms,
        "real must be bool [T]");
  check(sizes.scalar_type() == ScalarType::Long && sizes.dim() == 1, "sizes must be int64 [B]");
  check(parts >= 1, "parts must be at least 1");
  const Tensor x = torch::stable::contiguous(coordinates);
  const Tensor valid = torch::stable::contiguous(real), of = torch::stable::contiguous(sizes);
  const int64_t* size = of.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t b = 0; b < of.size(0); ++b) {
    check(size[b] >= 0 && size[b] <= atoms, "sizes must not be negative");
    total += size[b];
  }
  check(total == atoms, "sizes must add up to the number of atoms");
  Tensor found = torch::stable::new_empty(coordinates, {parts}, ScalarType::Bool);
  const collamo::cpu::PackedPositions positions{x.const_data_ptr<float>(),
                                                static_cast<const uint8_t*>(valid.const_data_ptr()),
                                                size, of.size(0)};
  collamo::cpu::occurring_distances(positions, static_cast<float>(high), parts,
                                    static_cast<uint8_t*>(found.mutable_data_ptr()));
  return found;
}

#ifdef COLLAMO_WITH_CUDA

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

bool captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

Tensor new_words(const Tensor& like, int64_t words) {
  return torch::stable::new_empty(like, {words}, ScalarType::Long);
}

// Waits for the device once, for what is wrong with the data and how much there is. While a CUDA
// graph is captured nobody may wait: then the size must be given, and wrong data stop the kernel.
Tensor shortest_paths_cuda(const Tensor& edge_index, const Tensor& ptr, bool packed,
                           std::optional<int64_t> size) {
  using namespace collamo::cuda;
  check_form(edge_index, ptr, packed, size);
  check(ptr.is_cuda() && ptr.get_device_index() == edge_index.get_device_index(),
        "ptr must be on the device of edge_index");
  const torch::stable::accelerator::DeviceGuard guard(edge_index.get_device_index());
  const cudaStream_t stream = current_stream(edge_index);
  const bool capturing = captured(stream);
  check(!capturing || size.has_value(), "size must be given while a CUDA graph is captured");
  const Tensor edges = torch::stable::contiguous(edge_index);
  const Tensor ends = torch::stable::contiguous(ptr);
  const auto* source = edges.const_data_ptr<int64_t>();
  const int64_t count = edges.size(1), molecules = ends.size(0) - 1;
  check(molecules > 0 || count == 0, "edge_index has edges, but ptr has no atoms");
  const Graphs graphs{source, source + count, count, ends.const_data_ptr<int64_t>(), molecules};
  const Limits limits{packed ? kMaxAtoms : size.value_or(kMaxAtoms),
                      packed ? size.value_or(-1) : -1};
  const Tensor words = new_words(edges, survey_words(graphs));
  check(survey(graphs, limits, capturing, words.mutable_data_ptr<int64_t>(), stream));
  Survey found = worst_case(graphs, limits);
  if (!capturing) check(read_survey(graphs, words.const_data_ptr<int64_t>(), &found, stream));
  check(!found.wrong,
        "edge_index or ptr is wrong: on a GPU edges stand molecule by molecule, ptr rises from 0, "
        "no molecule has more atoms than size, and packed size is the number of pairs");
  const int64_t written = size.value_or(packed ? found.pairs : found.largest);
  const Tensor hops = empty_hops(edges, molecules, packed, written);
  const Tensor scratch = new_words(edges, scratch_words(found));
  check(search(graphs, found, packed ? -1 : written, words.const_data_ptr<int64_t>(),
               scratch.mutable_data_ptr<int64_t>(), hops.mutable_data_ptr<uint8_t>(), stream));
  return hops;
}

std::tuple<Tensor, Tensor, Tensor> pairs_by_hops_cuda(const Tensor& hops,
                                                      const std::optional<Tensor>& real) {
  check(hops.scalar_type() == ScalarType::Byte && hops.dim() == 1, "hops must be uint8 [P]");
  const int64_t pairs = hops.size(0);
  check(!real || (real->scalar_type() == ScalarType::Bool && real->dim() == 1 &&
                  real->size(0) == pairs && real->is_cuda() &&
                  real->get_device_index() == hops.get_device_index()),
        "real must be bool [P] on the device of hops");
  const torch::stable::accelerator::DeviceGuard guard(hops.get_device_index());
  const Tensor from = torch::stable::contiguous(hops);
  const Tensor of = real ? torch::stable::contiguous(*real) : from;
  const Tensor words = new_words(from, collamo::cuda::sort_words(pairs));
  const Tensor order = new_words(from, pairs), starts = new_words(from, collamo::cuda::kBins);
  const Tensor keys =
      torch::stable::new_empty(from, {pairs}, real ? ScalarType::Short : ScalarType::Byte);
  check(collamo::cuda::sort_pairs(from.const_data_ptr<uint8_t>(),
                                  real ? static_cast<const uint8_t*>(of.const_data_ptr()) : nullptr,
                                  pairs, words.mutable_data_ptr<int64_t>(),
                                  order.mutable_data_ptr<int64_t>(), keys.mutable_data_ptr(),
                                  starts.mutable_data_ptr<int64_t>(), current_stream(from)));
  return {order, keys, starts};
}

#endif  // COLLAMO_WITH_CUDA

}  // namespace

STABLE_TORCH_LIBRARY(collamo_kernels, m) {
  m.def("shortest_paths(Tensor edge_index, Tensor ptr, bool packed, SymInt? size) -> Tensor");
  m.def("pairwise_distances(Tensor coordinates, Tensor? valid) -> Tensor");
  m.def("pairwise_distances_backward(Tensor grad, Tensor coordinates, Tensor? valid) -> Tensor");
  m.def(
      "neighbour_sum(Tensor x, Tensor table, Tensor source, Tensor kind, Tensor ptr, "
      "Tensor? receiver, Tensor? scale, bool relu) -> Tensor");
  m.def(
      "neighbour_sum_backward(Tensor grad, Tensor x, Tensor table, Tensor source, Tensor kind, "
      "Tensor ptr, bool relu) -> (Tensor, Tensor)");
  m.def(
      "occurring_distances(Tensor coordinates, Tensor real, Tensor sizes, float high, int parts) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("shortest_paths", TORCH_BOX(&shortest_paths));
  m.impl("pairwise_distances", TORCH_BOX(&pairwise_distances));
  m.impl("pairwise_distances_backward", TORCH_BOX(&pairwise_distances_backward));
  m.impl("neighbour_sum", TORCH_BOX(&neighbour_sum));
  m.impl("neighbour_sum_backward", TORCH_BOX(&neighbour_sum_backward));
  m.impl("occurring_distances", TORCH_BOX(&occurring_distances));
}

#ifdef COLLAMO_WITH_CUDA
// The schema and the definition of pairs_by_hops are in Python.
STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CUDA, m) {
  m.impl("shortest_paths", TORCH_BOX(&shortest_paths_cuda));
  m.impl("pairs_by_hops", TORCH_BOX(&pairs_by_hops_cuda));
}
#endif
