#include "module.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "../capability.h"

namespace collamo::cpu {

COLLAMO_DECLARE_TABLES(RadialKernels, radial_kernels)

namespace radial {

const RadialKernels& kernels() {
  static const RadialKernels& table = widest<RadialKernels>(COLLAMO_TABLES(radial_kernels));
  return table;
}

int64_t whole_vectors(int64_t count) {
  const int64_t width = kernels().width;
  return (count + width - 1) / width * width;
}

Tensor plain(const Tensor& x, int64_t elements, const char* name) {
  check(x.scalar_type() == ScalarType::Float, std::string(name) + " must be float32");
  check(x.numel() == elements, std::string(name) + " has the wrong number of elements");
  return torch::stable::contiguous(x);
}

namespace {

// from [rows, columns] → [rows, columns↑], with `fill` in the padding.
Floats laid_out(const float* from, int64_t rows, int64_t columns, float fill = 0) {
  const int64_t line = whole_vectors(columns);
  Floats to(rows * line);
  for (int64_t i = 0; i < rows; ++i) {
    float* out = to.get() + i * line;
    std::copy_n(from + i * columns, columns, out);
    std::fill(out + columns, out + line, fill);
  }
  return to;
}

// from [rows, columns] → [columns, rows↑], or of its absolute values; 0 in the padding. Goes by
// strips of rows, so that each row is read from front to back.
Floats transposed(const float* from, int64_t rows, int64_t columns, bool absolute) {
  constexpr int64_t kStrip = 16;
  const int64_t line = whole_vectors(rows);
  Floats to(columns * line, line > rows);
  for (int64_t first = 0; first < rows; first += kStrip) {
    const int64_t last = std::min(first + kStrip, rows);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = first; j < last; ++j) {
        const float x = from[j * columns + i];
        to.get()[i * line + j] = absolute ? std::fabs(x) : x;
      }
    }
  }
  return to;
}

}  // namespace

Module::Module(Use use, const Tensor& centre, const Tensor& width, const Tensor& weight,
               const Optional& bias, const Optional& weight2, const Optional& bias2)
    : use_(use) {
  check(weight.dim() == 2 && (!weight2 || weight2->dim() == 2), "weights must be [out, in]");
  const int64_t gaussians = weight.size(1);
  check(gaussians >= 1 && weight.size(0) >= 1, "weight must not be empty");
  const Tensor mu = plain(centre, gaussians, "centre"), s = plain(width, gaussians, "width");
  module_.centre = keep(laid_out(mu.const_data_ptr<float>(), 1, gaussians));
  module_.width = keep(laid_out(s.const_data_ptr<float>(), 1, gaussians, 1));
  add_layer(weight, bias);
  if (!weight2) return;
  check(weight2->size(1) == weight.size(0) && weight2->size(0) >= 1, "weight2 must be [H, K']");
  add_layer(*weight2, bias2);
}

const float* Module::keep(Floats floats) {
  kept_.push_back(std::move(floats));
  return kept_.back().get();
}

void Module::add_layer(const Tensor& weight, const Optional& bias) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const Tensor w = plain(weight, out * in, "weight");
  const float* data = w.const_data_ptr<float>();
  RadialLayer& layer = module_.layer[module_.layers++];
  layer.in = in, layer.out = out;
  layer.transposed = keep(transposed(data, out, in, use_ == Use::kBounds));
  if (use_ == Use::kGradients) layer.weight = keep(laid_out(data, out, in));
  if (!bias) return;
  const Tensor b = plain(*bias, out, "bias");
  layer.bias = keep(laid_out(b.const_data_ptr<float>(), 1, out));
}

}  // namespace radial
}  // namespace collamo::cpu
