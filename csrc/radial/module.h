// A radial module with its parameters laid out for the kernels.

#pragma once

#include <cstdint>
#include <vector>

#include "../checks.h"
#include "../tasks.h"
#include "kernel.h"

namespace collamo::cpu::radial {

constexpr Check check("radial table: ");

const RadialKernels& kernels();

// `count` rounded up to whole vectors: count↑.
int64_t whole_vectors(int64_t count);

// A float32 tensor as the kernels read it.
Tensor plain(const Tensor& x, int64_t elements, const char* name);

// What a module is laid out for: its values, bounds (with the absolute values of the weights) or
// gradients, which need the weights both ways.
enum class Use { kValues, kBounds, kGradients };

class Module {
 public:
  Module(Use use, const Tensor& centre, const Tensor& width, const Tensor& weight,
         const Optional& bias, const Optional& weight2, const Optional& bias2);

  const RadialModule& get() const { return module_; }

 private:
  const float* keep(Floats floats);
  void add_layer(const Tensor& weight, const Optional& bias);

  Use use_;
  RadialModule module_{};
  std::vector<Floats> kept_;
};

inline int64_t tiles_of(int64_t count) { return (count + kRadialTile - 1) / kRadialTile; }

}  // namespace collamo::cpu::radial
