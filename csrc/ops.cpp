// Operator schemas and the checks that keep the kernels safe, on LibTorch's stable ABI: one binary
// serves every torch from TORCH_TARGET_VERSION on. The Python functions check first, with
// friendlier errors; these checks stand for callers who come in through torch.ops.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/shortest_paths.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxAtoms = 65535;  // of one molecule; the kernels keep atom numbers in 16 bits

void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

// Returns the total number of pairs, Σ n².
int64_t check_ptr(const int64_t* ptr, int64_t molecules, int64_t largest) {
  check(ptr[0] == 0, "ptr must start at 0");
  int64_t pairs = 0;
  for (int64_t b = 0; b < molecules; ++b) {
    const int64_t atoms = ptr[b + 1] - ptr[b];
    if (ptr[b + 1] < ptr[b] || atoms > largest) {
      throw std::invalid_argument("ptr gives molecule " + std::to_string(b) + " the atoms " +
                                  std::to_string(ptr[b]) + " to " + std::to_string(ptr[b + 1]) +
                                  "; it must never fall, and no molecule may have more than " +
                                  std::to_string(largest) + " atoms");
    }
    pairs += atoms * atoms;
  }
  return pairs;
}

Tensor shortest_paths(const Tensor& edge_index, const Tensor& ptr, bool packed, int64_t size) {
  check(edge_index.scalar_type() == ScalarType::Long, "edge_index must be int64");
  check(edge_index.dim() == 2 && edge_index.size(0) == 2, "edge_index must be [2, E]");
  check(ptr.scalar_type() == ScalarType::Long, "ptr must be int64");
  check(ptr.dim() == 1 && ptr.size(0) >= 1, "ptr must be [B + 1]");
  check(size >= 0 && (packed || size <= kMaxAtoms), "size must be between 0 and 65535 atoms");
  const Tensor edges = torch::stable::contiguous(edge_index);
  const Tensor ends = torch::stable::contiguous(ptr);
  const auto* source = edges.const_data_ptr<int64_t>();
  const int64_t count = edges.size(1), molecules = ends.size(0) - 1;
  const collamo::cpu::Graphs graphs{source, source + count, count, ends.const_data_ptr<int64_t>(),
                                    molecules};
  const int64_t pairs = check_ptr(graphs.ptr, molecules, packed ? kMaxAtoms : size);
  check(!packed || size == pairs, "size must be the total number of pairs of atoms");
  const Tensor hops =
      packed ? torch::stable::new_empty(edges, {size}, ScalarType::Byte)
             : torch::stable::new_empty(edges, {molecules, size, size}, ScalarType::Byte);
  collamo::cpu::shortest_paths(graphs, packed ? -1 : size, hops.mutable_data_ptr<uint8_t>());
  return hops;
}

}  // namespace

STABLE_TORCH_LIBRARY(collamo_kernels, m) {
  m.def("shortest_paths(Tensor edge_index, Tensor ptr, bool packed, SymInt size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("shortest_paths", TORCH_BOX(&shortest_paths));
}
