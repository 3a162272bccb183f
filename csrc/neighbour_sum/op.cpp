// The operators neighbour_sum and neighbour_sum_backward; collamo_kernels/neighbour_sum/op.py says
// what the arguments mean.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "cpu.h"

namespace collamo::cpu {
namespace {

constexpr Check check;

// Checks that every number is one of `rows`.
void check_numbers(const Tensor& numbers, int64_t rows, const char* message) {
  check(fits(numbers, ScalarType::Long, {kAny}), message);
  const auto* first = numbers.const_data_ptr<int64_t>();
  const auto inside = [rows](int64_t n) { return n >= 0 && n < rows; };
  check(std::all_of(first, first + numbers.size(0), inside), message);
}

// The tensors that `edges` and `rows` point into, checked.
struct Messages {
  Tensor x, table, source, kind, ptr;
  bool relu;

  Messages(const Tensor& nodes, const Tensor& kinds, const Tensor& sources,
           const Tensor& edge_kinds, const Tensor& ends, bool rectified)
      : x(torch::stable::contiguous(nodes)),
        table(torch::stable::contiguous(kinds)),
        source(torch::stable::contiguous(sources)),
        kind(torch::stable::contiguous(edge_kinds)),
        ptr(torch::stable::contiguous(ends)),
        relu(rectified) {
    check(fits(x, ScalarType::Float, {kAny, kAny}), "x must be float32 [N, C]");
    check(fits(table, ScalarType::Float, {kAny, x.size(1)}), "table must be float32 [K, C]");
    check_numbers(source, x.size(0), "source must be int64 [E], rows of x");
    check_numbers(kind, table.size(0), "kind must be int64 [E], rows of table");
    check(kind.size(0) == source.size(0), "kind must be as long as source");
    check(fits(ptr, ScalarType::Long, {kAny}) && ptr.size(0) >= 1, "ptr must be int64 [M + 1]");
    const auto* first = ptr.const_data_ptr<int64_t>();
    const int64_t last = ptr.size(0) - 1;
    check(first[0] == 0 && first[last] == source.size(0) && std::is_sorted(first, first + last + 1),
          "ptr must rise from 0 to the number of edges");
  }

  SortedEdges edges() const {
    return {source.const_data_ptr<int64_t>(), kind.const_data_ptr<int64_t>(),
            ptr.const_data_ptr<int64_t>(), source.size(0), ptr.size(0) - 1};
  }

  Rows rows() const {
    return {x.const_data_ptr<float>(),
            table.const_data_ptr<float>(),
            x.size(0),
            table.size(0),
            x.size(1),
            relu};
  }
};

Tensor forward(const Tensor& x, const Tensor& table, const Tensor& source, const Tensor& kind,
               const Tensor& ptr, const std::optional<Tensor>& receiver,
               const std::optional<Tensor>& scale, bool relu) {
  const Messages messages(x, table, source, kind, ptr, relu);
  const int64_t nodes = ptr.size(0) - 1;
  std::optional<Tensor> receivers;
  if (receiver) {
    receivers = torch::stable::contiguous(*receiver);
    check_numbers(*receivers, x.size(0), "receiver must be int64 [M], rows of x");
    check(receivers->size(0) == nodes, "receiver must be [M], where ptr is [M + 1]");
  }
  check(!scale || (scale->scalar_type() == ScalarType::Float && scale->numel() == 1),
        "scale must be one float32");
  check(!scale || receiver || x.size(0) == nodes,
        "x must have a row for each of the nodes of ptr, or receiver say which");
  const Tensor sums = torch::stable::new_empty(messages.x, {nodes, x.size(1)});
  neighbour_sum(messages.edges(), messages.rows(),
                receivers ? receivers->const_data_ptr<int64_t>() : nullptr,
                scale ? scale->const_data_ptr<float>() : nullptr, sums.mutable_data_ptr<float>());
  return sums;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& table,
                                    const Tensor& source, const Tensor& kind, const Tensor& ptr,
                                    bool relu) {
  const Messages messages(x, table, source, kind, ptr, relu);
  check(fits(grad, ScalarType::Float, {ptr.size(0) - 1, x.size(1)}), "grad must be float32 [M, C]");
  const Tensor incoming = torch::stable::contiguous(grad);
  const Tensor dx = torch::stable::empty_like(messages.x);
  const Tensor dtable = torch::stable::empty_like(messages.table);
  neighbour_sum_backward(messages.edges(), messages.rows(), incoming.const_data_ptr<float>(),
                         dx.mutable_data_ptr<float>(), dtable.mutable_data_ptr<float>());
  return {dx, dtable};
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def(
      "neighbour_sum(Tensor x, Tensor table, Tensor source, Tensor kind, Tensor ptr, "
      "Tensor? receiver, Tensor? scale, bool relu) -> Tensor");
  m.def(
      "neighbour_sum_backward(Tensor grad, Tensor x, Tensor table, Tensor source, Tensor kind, "
      "Tensor ptr, bool relu) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("neighbour_sum", TORCH_BOX(&collamo::cpu::forward));
  m.impl("neighbour_sum_backward", TORCH_BOX(&collamo::cpu::backward));
}
