// Checks that keep the kernels inside their tensors. The Python functions check first, with
// friendlier errors; these are for callers of torch.ops.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace collamo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// check(holds, message) throws std::invalid_argument: the prefix, then the message.
class Check {
 public:
  explicit constexpr Check(const char* prefix = "") : prefix_(prefix) {}

  void operator()(bool holds, std::string_view message) const {
    if (!holds) throw std::invalid_argument(prefix_ + std::string(message));
  }

 private:
  const char* prefix_;
};

constexpr int64_t kAny = -1;

// Whether x has this type and these sizes; kAny stands for any size.
inline bool fits(const Tensor& x, ScalarType type, std::initializer_list<int64_t> sizes) {
  if (x.scalar_type() != type || x.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    if (size != kAny && x.size(axis) != size) return false;
    ++axis;
  }
  return true;
}

}  // namespace collamo
