// The Gaussians of a radial function and its head, at a tile of places u: what a table is made of.
//
// The function and its derivatives by u go through the layers together, as neighbouring rows of one
// matrix [u, order, channel]. Nothing of it leaves the tile, so the backward pass computes it anew.
// collamo_kernels/radial has the formulas.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "../simd.h"

namespace collamo::cpu {
namespace {

constexpr int64_t W = kWidth;
constexpr int kMostOrders = 5;  // of derivatives that are bounded
constexpr float kInverseRoot2Pi = 0.39894228f;

int64_t whole_vectors(int64_t count) { return (count + W - 1) / W * W; }

// --- matrix products ----------------------------------------------------------------------------

// Element (i, j) is at data + i·row + j·column.
struct Left {
  const float* data;
  int64_t row, column;
};

// Accumulators and a row of the right matrix must fit the registers: 24 + 3 + 1 of 32.
constexpr int kRows = W == 16 ? 8 : 4;
constexpr int kColumns = 3;

// Terms that are summed in one go. Sums of sums: without fused multiplication the rounding of 128
// terms in a row was twice PyTorch's.
constexpr int64_t kTerms = 32;

// c[0:Rows, 0:Columns·W] (+)= Σ_k x[:, k] y[k, :].
template <int Rows, int Columns>
inline void multiply_block(float* c, int64_t c_row, Left x, const float* y, int64_t y_row,
                           int64_t inner, bool add) {
  for (int64_t done = 0; done < inner; done += kTerms, add = true) {
    Vec sum[Rows][Columns] = {};
    const int64_t end = done + kTerms < inner ? done + kTerms : inner;
    for (int64_t k = done; k < end; ++k, y += y_row) {
      Vec right[Columns];
      for (int j = 0; j < Columns; ++j) right[j] = load(y + j * W);
      for (int i = 0; i < Rows; ++i) {
        const Vec left = broadcast(x.data[i * x.row + k * x.column]);
        for (int j = 0; j < Columns; ++j) sum[i][j] += left * right[j];
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Columns; ++j) {
        float* to = c + i * c_row + j * W;
        store(to, add ? load(to) + sum[i][j] : sum[i][j]);
      }
    }
  }
}

template <int Columns>
inline void multiply_panel(float* c, int64_t c_row, Left x, const float* y, int64_t y_row,
                           int64_t rows, int64_t inner, bool add) {
  int64_t i = 0;
  const auto from = [&](int64_t row) { return Left{x.data + row * x.row, x.row, x.column}; };
  for (; i + kRows <= rows; i += kRows) {
    multiply_block<kRows, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_block<2, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
  }
  if (i < rows) multiply_block<1, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
}

// c [rows, columns↑] = x [rows, inner] y [inner, columns↑], or added to c. A panel of y stays in
// L1.
void multiply(float* c, Left x, const float* y, int64_t rows, int64_t inner, int64_t columns,
              bool add) {
  const int64_t row = whole_vectors(columns);
  int64_t j = 0;
  for (; j + kColumns * W <= row; j += kColumns * W) {
    multiply_panel<kColumns>(c + j, row, x, y + j, row, rows, inner, add);
  }
  if (j + 2 * W == row) multiply_panel<2>(c + j, row, x, y + j, row, rows, inner, add);
  if (j + W == row) multiply_panel<1>(c + j, row, x, y + j, row, rows, inner, add);
}

// --- Gaussians and GELU -------------------------------------------------------------------------

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

// GELU'(a) and GELU''(a), given Φ(a).
inline void gelu_slopes(Vec a, Vec phi, Vec& slope, Vec& curvature) {
  const Vec density = kInverseRoot2Pi * exponential(-0.5f * a * a);
  slope = phi + a * density;
  curvature = (2 - a * a) * density;
}

// Rows of a tile: what a channel's derivatives of order 0 … orders - 1 are is `stride` apart.
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

// Adds dL/dμ and dL/ds, given dL/dψ [count, 2, K↑] of value and slope.
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

// --- tiles --------------------------------------------------------------------------------------

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

int64_t scratch_floats(const RadialModule& m) { return 5 * Buffers::floats(m); }

void rows(const RadialModule& m, const float* u, int64_t count, float* rows, float* slope_rows,
          float* scratch) {
  const Buffers buffers(m, scratch);
  const Shape shape{count, slope_rows ? 3 : 2};
  gaussians(m, u, shape, buffers.psi);
  const float* x = buffers.psi;
  if (m.layers == 2) {
    apply(m.first(), x, shape, buffers.a);
    activate(buffers.a, shape, whole_vectors(m.first().out), buffers.h);
    x = buffers.h;
  }
  apply(m.last(), x, shape, buffers.y);
  const int64_t heads = m.last().out, row = whole_vectors(heads);
  for (int64_t i = 0; i < count; ++i) {
    const float* y = buffers.y + i * shape.orders * row;
    for (int order = 0; order < 2; ++order) {
      std::memcpy(rows + (2 * i + order) * heads, y + order * row, heads * sizeof(float));
      if (!slope_rows) continue;
      std::memcpy(slope_rows + (2 * i + order) * heads, y + (order + 1) * row,
                  heads * sizeof(float));
    }
  }
}

// Adds the gradients of a layer's weight and bias: x [count, 2, in↑], grad [count, 2, row].
void layer_gradient(const RadialLayer& layer, const float* x, const float* grad, int64_t row,
                    int64_t count, float* weight, float* bias) {
  multiply(weight, {grad, 1, row}, x, layer.out, 2 * count, layer.in, true);
  for (int64_t j = 0; j < layer.out; ++j) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += grad[2 * i * row + j];
    bias[j] += sum;
  }
}

void gradients(const RadialModule& m, const float* u, int64_t count, const float* grad,
               const RadialGradients& to, float* scratch) {
  const Buffers buffers(m, scratch);
  const Shape shape{count, 2};
  gaussians(m, u, shape, buffers.psi);
  int64_t row = m.last().out;
  if (m.layers == 2) {
    const int64_t hidden = whole_vectors(m.first().out);
    apply(m.first(), buffers.psi, shape, buffers.a);
    activate(buffers.a, shape, hidden, buffers.h);
    layer_gradient(m.last(), buffers.h, grad, row, count, to.weight[1], to.bias[1]);
    multiply(buffers.grad, {grad, row, 1}, m.last().weight, shape.rows(), m.last().out, m.last().in,
             false);
    activate_gradient(buffers.a, count, hidden, buffers.grad);
    grad = buffers.grad, row = hidden;
  }
  layer_gradient(m.first(), buffers.psi, grad, row, count, to.weight[0], to.bias[0]);
  multiply(buffers.h, {grad, row, 1}, m.first().weight, shape.rows(), m.first().out, m.first().in,
           false);
  gaussians_gradient(m, u, count, buffers.h, to);
}

// --- bounds of derivatives ----------------------------------------------------------------------

// A NaN stays one.
inline Vec at_least(Vec x, Vec least) { return choose(x < least, least, x); }
inline float largest(float a, float b) { return b > a || b != b ? b : a; }

// Where |Heₙ(z)| exp(-z²/2), the n-th derivative of a Gaussian, turns back (z > 0), and its value
// there, rounded up. BELL_PEAKS of collamo_kernels/radial.
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

// x [count, orders, K↑] = bounds of the Gaussians' derivatives; the largest 4th one of each place.
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

namespace COLLAMO_CAPABILITY {
extern const RadialKernels radial_kernels;
const RadialKernels radial_kernels{kCapability, W, scratch_floats, rows, gradients, bounds};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
