// Normal densities at many places, and their gradients: one pass, Gaussians in the lanes.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "../simd.h"

namespace collamo::cpu {
namespace {

constexpr int64_t kTerms = 8;  // in one sum, before sums are summed: that rounds less

// z and the density at u of the Gaussians k … k + W - 1.
struct Density {
  Vec z, value;

  Density(const Gaussians& g, float u, int64_t k)
      : z((u - load(g.centre + k)) / load(g.width + k)),
        value(exponential(-0.5f * z * z) * load(g.peak + k)) {}
};

void forward(const Gaussians& g, const float* u, int64_t places, float* out) {
  for (int64_t i = 0; i < places; ++i, out += g.count) {
    int64_t k = 0;
    for (; k + W <= g.count; k += W) store(out + k, Density(g, u[i], k).value);
    if (k == g.count) continue;
    float rest[W];
    store(rest, Density(g, u[i], k).value);
    for (int64_t lane = 0; k + lane < g.count; ++lane) out[k + lane] = rest[lane];
  }
}

// With t = grad·ψ: dL/du = -Σ_k t·z/s, and s·dL/dμ = Σ t·z, s·dL/ds = Σ t·(z² - 1).
Vec add_gradients(const Gaussians& g, float u, int64_t k, Vec grad, float* sums, int64_t line) {
  const Density density(g, u, k);
  const Vec t = grad * density.value, tz = t * density.z;
  add_to(sums + k, tz);
  add_to(sums + line + k, tz * density.z - t);
  return tz / load(g.width + k);
}

void backward(const Gaussians& g, const float* u, int64_t places, const float* grad, float* du,
              float* sums, float* scratch) {
  const int64_t line = (g.count + W - 1) / W * W;
  for (int64_t first = 0; first < places; first += kTerms) {
    std::memset(scratch, 0, 2 * line * sizeof(float));
    for (int64_t i = first; i < places && i < first + kTerms; ++i, grad += g.count) {
      Vec sum{};
      int64_t k = 0;
      for (; k + W <= g.count; k += W) {
        sum += add_gradients(g, u[i], k, load(grad + k), scratch, line);
      }
      if (k < g.count) {
        float rest[W] = {};
        for (int64_t lane = 0; k + lane < g.count; ++lane) rest[lane] = grad[k + lane];
        sum += add_gradients(g, u[i], k, load(rest), scratch, line);
      }
      du[i] = -sum_lanes(sum);
    }
    for (int64_t k = 0; k < 2 * line; k += W) add_to(sums + k, load(scratch + k));
  }
}

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const GaussianKernels gaussian_kernels;
const GaussianKernels gaussian_kernels{kCapability, W, forward, backward};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
