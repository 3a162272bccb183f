// How the attentions read and write tensors of atoms.

#pragma once

#include <cstdint>

namespace collamo::cpu {

enum class Element : int32_t { kFloat, kBFloat16, kHalf };

// q, k, v, a result or a gradient: [B, H, N, D], or packed [T, H, D] with `molecule` = 0. Strides
// are in elements.
struct Atoms {
  void* data;
  Element type;
  int64_t molecule, head, atom, dim;
};

}  // namespace collamo::cpu
