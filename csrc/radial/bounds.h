// Bounds of the derivatives, from which the distance between knots follows.

#pragma once

#include "../simd.h"
#include "kernel.h"
#include "layers.h"
#include "matrix.h"

namespace collamo::cpu {
namespace {

// NaN stays NaN.
inline Vec at_least(Vec x, Vec least) { return choose(x < least, least, x); }
inline float largest(float a, float b) { return b > a || b != b ? b : a; }

// Where |Heₙ(z)| exp(-z²/2), the n-th derivative of a Gaussian, has an extremum (z > 0), and its
// value there, rounded up. BELL_PEAKS of collamo_kernels/radial.
struct Peak {
  float z, value;
};
constexpr Peak kPeaks[kMostOrders][3] = {
    {{1.0f, 0.60654f}},
    {{1.73206f, 0.44627f}},
    {{0.74197f, 1.38012f}, {2.33442f, 0.37490f}},
    {{1.35563f, 1.85488f}, {2.85698f, 0.34873f}},
    {{0.61671f, 5.78306f}, {1.88918f, 2.52212f}, {3.32426f, 0.35248f}}};

// bounds[n] of |dⁿ⁺¹ψ/duⁿ⁺¹| from z ≥ 0 outwards.
inline void bell_bounds(Vec z, Vec s, Vec (&bounds)[kMostOrders]) {
  const Vec q = z * z, bell = exponential(-0.5f * q);
  const Vec hermite[] = {z, q - 1, (q - 3) * z, (q - 6) * q + 3, ((q - 10) * q + 15) * z};
  Vec scale = broadcast(1);
  for (int n = 0; n < kMostOrders; ++n) {
    Vec bound = magnitude(hermite[n] * bell);
    for (const Peak& peak : kPeaks[n]) {
      bound = at_least(bound, choose(z < peak.z, broadcast(peak.value), Vec{}));
    }
    scale = scale / s;
    bounds[n] = bound * scale;
  }
}

// a[n] bounds the derivative n + 1 of an activation; the 4th and 5th of its GELU (Faà di Bruno).
// GELU_PEAKS of collamo_kernels/radial.
inline void gelu_bounds(const Vec (&a)[kMostOrders], Vec& fourth, Vec& fifth) {
  constexpr float g1 = 1.1290f, g2 = 0.7979f, g3 = 0.7788f, g4 = 1.5958f, g5 = 2.8426f;
  const Vec q = a[0] * a[0];
  fourth = g1 * a[3] + g2 * (3 * a[1] * a[1] + 4 * a[0] * a[2]) + q * (6 * g3 * a[1] + g4 * q);
  fifth = g1 * a[4] + g2 * (10 * a[1] * a[2] + 5 * a[0] * a[3]);
  fifth += g3 * (15 * a[0] * a[1] * a[1] + 10 * q * a[2]);
  fifth += q * a[0] * (10 * g4 * a[1] + g5 * q);
}

// x [count, orders, K↑] = bounds of the Gaussians' derivatives; the largest 4th derivative at each
// place.
void gaussian_bounds(const RadialModule& m, const float* centres, Shape shape, float reach,
                     float* x, float* gaussian) {
  const int64_t row = whole_vectors(m.first().in);
  for (int64_t i = 0; i < shape.count; ++i, x += shape.orders * row) {
    for (int64_t k = 0; k < row; k += W) {
      const Vec s = load(m.width + k), away = magnitude(centres[i] - load(m.centre + k)) - reach;
      Vec bounds[kMostOrders];
      bell_bounds(at_least(away, Vec{}) / s, s, bounds);
      for (int n = 0; n < shape.orders; ++n) store(x + n * row + k, bounds[n]);
    }
    gaussian[i] = 0;
    for (int64_t k = 0; k < m.first().in; ++k) gaussian[i] = largest(gaussian[i], x[3 * row + k]);
  }
}

void bounds(const RadialModule& m, const float* centres, int64_t count, float reach, int last,
            float* bounds, float* gaussian, float* scratch) {
  const Buffers buffers(m, scratch);
  const Shape shape{count, last};
  gaussian_bounds(m, centres, shape, reach, buffers.psi, gaussian);
  const float* x = buffers.psi;
  if (m.layers == 2) {
    const int64_t row = whole_vectors(m.first().out);
    multiply(buffers.a, {x, whole_vectors(m.first().in), 1}, m.first().transposed, shape.rows(),
             m.first().in, m.first().out, false);
    for (int64_t at = 0; at < count * row; at += W) {
      float* to = buffers.a + at / row * last * row + at % row;
      Vec a[kMostOrders] = {}, fourth, fifth;
      for (int n = 0; n < last; ++n) a[n] = load(to + n * row);
      gelu_bounds(a, fourth, fifth);
      store(to + 3 * row, fourth);
      if (last == 5) store(to + 4 * row, fifth);
    }
    x = buffers.a;
  }
  const int64_t in = whole_vectors(m.last().in), out = whole_vectors(m.last().out);
  for (int order = 4; order <= last; ++order) {
    multiply(buffers.y, {x + (order - 1) * in, last * in, 1}, m.last().transposed, count,
             m.last().in, m.last().out, false);
    for (int64_t i = 0; i < count; ++i) {
      float& bound = bounds[i * (last - 3) + order - 4];
      bound = 0;
      for (int64_t h = 0; h < m.last().out; ++h) bound = largest(bound, buffers.y[i * out + h]);
    }
  }
}

}  // namespace
}  // namespace collamo::cpu
