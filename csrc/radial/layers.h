// Gaussians, linear layers and GELU, with their derivatives by u, at a tile of places.

#pragma once

#include "../simd.h"
#include "kernel.h"
#include "matrix.h"

namespace collamo::cpu {
namespace {

constexpr int kMostOrders = 5;  // of the derivatives that have bounds
constexpr float kInverseRoot2Pi = 0.39894228f;

inline Vec magnitude(Vec x) { return as_float(as_int(x) & 0x7FFFFFFF); }

// Φ(a), the normal distribution, 3e-8 off at most. Φ(-t) = ½ exp(-P(t)) for t in [0, 6], P the
// minimax polynomial of degree 9 weighted by Φ(-t); beyond, Φ(-t) < 1e-9 counts as 0.
inline Vec normal(Vec a) {
  constexpr float kLast = 6;
  constexpr float kP[] = {-3.5547865e-7f, 6.6265447e-6f,  -5.1967209e-5f,
                          1.9709319e-4f,  -1.0388542e-5f, -4.8042880e-3f,
                          3.6345009e-2f,  3.1830806e-1f,  7.9788470e-1f};
  const Vec t = magnitude(a), inside = choose(t > kLast, broadcast(kLast), t);
  Vec p{};
  for (float coefficient : kP) p = p * inside + coefficient;
  const Vec tail = choose(t > kLast, Vec{}, 0.5f * exponential(-p * inside));
  return choose(a < 0, tail, 1 - tail);
}

// GELU'(a) and GELU''(a) from Φ(a).
inline void gelu_slopes(Vec a, Vec phi, Vec& slope, Vec& curvature) {
  const Vec density = kInverseRoot2Pi * exponential(-0.5f * a * a);
  slope = phi + a * density;
  curvature = (2 - a * a) * density;
}

// A tile has a row for each place and each order of derivative, 0 … orders - 1.
struct Shape {
  int64_t count;  // of places u
  int orders;
  int64_t rows() const { return count * orders; }
};

// psi [count, orders, K↑] = dⁿψ/duⁿ.
void gaussians(const RadialModule& m, const float* u, Shape shape, float* psi) {
  const int64_t row = whole_vectors(m.first().in);
  for (int64_t i = 0; i < shape.count; ++i, psi += shape.orders * row) {
    for (int64_t k = 0; k < row; k += W) {
      const Vec s = load(m.width + k), z = (u[i] - load(m.centre + k)) / s;
      const Vec bell = exponential(-0.5f * z * z);
      store(psi + k, bell);
      store(psi + row + k, -z / s * bell);
      if (shape.orders > 2) store(psi + 2 * row + k, (z * z - 1) / (s * s) * bell);
    }
  }
}

// y [count, orders, out↑] = x Wᵀ, and b added to the value.
void apply(const RadialLayer& layer, const float* x, Shape shape, float* y) {
  const Left left{x, whole_vectors(layer.in), 1};
  multiply(y, left, layer.transposed, shape.rows(), layer.in, layer.out, false);
  const int64_t row = whole_vectors(layer.out);
  for (int64_t i = 0; i < shape.count; ++i, y += shape.orders * row) {
    for (int64_t j = 0; j < row; j += W) add_to(y + j, load(layer.bias + j));
  }
}

// h = GELU(a) and its derivatives by u, both [count, orders, row].
void activate(const float* a, Shape shape, int64_t row, float* h) {
  const int64_t stride = shape.orders * row;
  for (int64_t i = 0; i < shape.count; ++i, a += stride, h += stride) {
    for (int64_t j = 0; j < row; j += W) {
      const Vec a0 = load(a + j), a1 = load(a + row + j), phi = normal(a0);
      Vec slope, curvature;
      gelu_slopes(a0, phi, slope, curvature);
      store(h + j, a0 * phi);
      store(h + row + j, slope * a1);
      if (shape.orders > 2) {
        store(h + 2 * row + j, slope * load(a + 2 * row + j) + curvature * a1 * a1);
      }
    }
  }
}

// dL/da from dL/dh, in place.
void activate_gradient(const float* a, int64_t count, int64_t row, float* grad) {
  for (int64_t i = 0; i < count; ++i, a += 2 * row, grad += 2 * row) {
    for (int64_t j = 0; j < row; j += W) {
      const Vec a0 = load(a + j), g0 = load(grad + j), g1 = load(grad + row + j);
      Vec slope, curvature;
      gelu_slopes(a0, normal(a0), slope, curvature);
      store(grad + j, g0 * slope + g1 * curvature * load(a + row + j));
      store(grad + row + j, g1 * slope);
    }
  }
}

// Adds dL/dμ and dL/ds, from dL/dψ [count, 2, K↑] of value and slope.
void gaussians_gradient(const RadialModule& m, const float* u, int64_t count, const float* grad,
                        const RadialGradients& to) {
  const int64_t row = whole_vectors(m.first().in);
  for (int64_t k = 0; k < row; k += W) {
    const Vec s = load(m.width + k), mu = load(m.centre + k), per_s = 1 / s;
    Vec centre{}, width{};
    for (int64_t i = 0; i < count; ++i) {
      const Vec z = (u[i] - mu) / s, bell = exponential(-0.5f * z * z);
      const Vec g0 = load(grad + 2 * i * row + k), g1 = load(grad + (2 * i + 1) * row + k) * per_s;
      const Vec dz = bell * ((z * z - 1) * g1 - z * g0);
      centre -= dz;
      width += bell * z * g1 - dz * z;
    }
    add_to(to.centre + k, centre * per_s);
    add_to(to.width + k, width * per_s);
  }
}

// Memory of one tile.
struct Buffers {
  float *psi, *a, *h, *y, *grad;

  Buffers(const RadialModule& m, float* memory) {
    for (float** buffer : {&psi, &a, &h, &y, &grad}) {
      *buffer = memory;
      memory += floats(m);
    }
  }

  static int64_t floats(const RadialModule& m) {
    int64_t widest = whole_vectors(m.first().in);
    for (int i = 0; i < m.layers; ++i) {
      const int64_t out = whole_vectors(m.layer[i].out);
      widest = out > widest ? out : widest;
    }
    return kRadialTile * kMostOrders * widest;
  }
};

}  // namespace
}  // namespace collamo::cpu
