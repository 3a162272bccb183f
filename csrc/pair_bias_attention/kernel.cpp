// One task of the attention with a pair bias: some heads of a molecule, forward or backward.
//
// Keys are the lanes: a row of bias or logits is already a row of vectors, so it is read and
// written as it is, and softmax walks along it. k and v of a head are laid out [d, key]; four
// queries share each load. All of it stays in L1 for a molecule of 100 atoms.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "../simd.h"

namespace collamo::cpu {
namespace {

constexpr int kRows = 4;          // queries at a time
constexpr int kSpan = W / kRows;  // d at a time: their products with all keys fill W registers
constexpr float kInfinity = __builtin_inff();

void clear(float* x, int64_t count) { std::memset(x, 0, count * sizeof(float)); }

int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// --- between the tensors' layouts and scratch memory --------------------------------------------

float widened(float x) { return x; }
float widened(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void narrow(float x, float* to) { *to = x; }
void narrow(float x, uint16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  *to = static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40 : rounded);
}

// visit(a, d, element) for the elements d of one head of the atoms first … first + count - 1.
template <typename Scalar, typename Visit>
void visit_as(const Atoms& x, int64_t head, int64_t first, int64_t count, int64_t dim,
              const Visit& visit) {
  Scalar* row = static_cast<Scalar*>(x.data) + head * x.head + first * x.atom;
  for (int64_t a = 0; a < count; ++a, row += x.atom) {
    for (int64_t d = 0; d < dim; ++d) visit(a, d, row + d * x.dim);
  }
}

template <typename Visit>
void visit(const Atoms& x, int64_t head, int64_t first, int64_t count, int64_t dim,
           const Visit& each) {
  if (x.type == Element::kFloat) return visit_as<float>(x, head, first, count, dim, each);
  visit_as<uint16_t>(x, head, first, count, dim, each);
}

// to [count, D] = factor · x.
void read_rows(const Atoms& x, int64_t head, int64_t first, int64_t count, int64_t dim,
               float factor, float* to) {
  visit(x, head, first, count, dim,
        [=](int64_t a, int64_t d, auto* from) { to[a * dim + d] = factor * widened(*from); });
}

// to [D, line] = x, transposed.
void read_columns(const Atoms& x, int64_t head, int64_t first, int64_t count, int64_t dim,
                  int64_t line, float* to) {
  visit(x, head, first, count, dim,
        [=](int64_t a, int64_t d, auto* from) { to[d * line + a] = widened(*from); });
}

// x = factor · from, whose element (a, d) is at a·row + d·column.
void write_atoms(const Atoms& x, int64_t head, int64_t first, int64_t count, int64_t dim,
                 float factor, const float* from, int64_t row, int64_t column) {
  visit(x, head, first, count, dim,
        [=](int64_t a, int64_t d, auto* to) { narrow(factor * from[a * row + d * column], to); });
}

// to [line] = from [count], `fill` behind it.
void read_pairs(const float* from, int64_t count, int64_t line, float fill, float* to) {
  int64_t j = 0;
  for (; j + W <= count; j += W) store(to + j, load(from + j));
  for (; j < count; ++j) to[j] = from[j];
  for (; j < line; ++j) to[j] = fill;
}

// row [count] += from.
void add_pairs(const float* from, int64_t count, float* row) {
  int64_t j = 0;
  for (; j + W <= count; j += W) add_to(row + j, load(from + j));
  for (; j < count; ++j) row[j] += from[j];
}

void write_pairs(float* to, int64_t count, const float* from) {
  int64_t j = 0;
  for (; j + W <= count; j += W) store(to + j, load(from + j));
  for (; j < count; ++j) to[j] = from[j];
}

// --- products of four rows ----------------------------------------------------------------------

// c [4, line] += x [4, D] y [D, line].
void multiply(const float* x, const float* y, int64_t dim, int64_t line, float* c) {
  for (int64_t j = 0; j < line; j += W) {
    Vec sum[kRows] = {};
    for (int64_t d = 0; d < dim; ++d) {
      const Vec column = load(y + d * line + j);
      for (int r = 0; r < kRows; ++r) sum[r] += x[r * dim + d] * column;
    }
    for (int r = 0; r < kRows; ++r) add_to(c + r * line + j, sum[r]);
  }
}

// c [4, D↑] = x [4, line] y [D↑, line]ᵀ.
void multiply_transposed(const float* x, const float* y, int64_t dim, int64_t line, float* c) {
  const int64_t padded = rounded_up(dim, kSpan);
  for (int64_t d = 0; d < padded; d += kSpan) {
    Vec sum[W] = {};
    for (int64_t j = 0; j < line; j += W) {
      Vec row[kRows];
      for (int r = 0; r < kRows; ++r) row[r] = load(x + r * line + j);
      for (int s = 0; s < kSpan; ++s) {
        const Vec column = load(y + (d + s) * line + j);
        for (int r = 0; r < kRows; ++r) sum[r * kSpan + s] += row[r] * column;
      }
    }
    float total[W];
    store(total, sum_lanes(sum));
    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < kSpan; ++s) c[r * padded + d + s] = total[r * kSpan + s];
    }
  }
}

// c [D, line] += x [4, D]ᵀ y [4, line].
void add_outer(const float* x, const float* y, int64_t dim, int64_t line, float* c) {
  for (int64_t j = 0; j < line; j += W) {
    Vec row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = load(y + r * line + j);
    for (int64_t d = 0; d < dim; ++d) {
      Vec sum = x[d] * row[0];
      for (int r = 1; r < kRows; ++r) sum += x[r * dim + d] * row[r];
      add_to(c + d * line + j, sum);
    }
  }
}

// A row of logits becomes weights; all are 0 if every key is excluded.
void soften(float* row, int64_t line) {
  Vec maxima = load(row);
  for (int64_t j = W; j < line; j += W) maxima = larger(maxima, load(row + j));
  float row_max = largest_lane(maxima);
  if (row_max == -kInfinity) row_max = 0;
  Vec sum{};
  for (int64_t j = 0; j < line; j += W) {
    const Vec weight = exponential(load(row + j) - row_max);
    store(row + j, weight);
    sum += weight;
  }
  const float total = sum_lanes(sum), inverse_sum = total == 0 ? 0 : 1 / total;
  for (int64_t j = 0; j < line; j += W) store(row + j, load(row + j) * inverse_sum);
}

// --- one head of a molecule ---------------------------------------------------------------------

// Scratch memory of a task. Behind the last key, the last d and the last query there are zeros.
struct Scratch {
  int64_t line, dims;      // keys in whole vectors, D in whole spans: D↑
  float *k, *v, *dk, *dv;  // [D↑, line]
  float *p, *g, *kept;     // [4, line]: weights, dL/dweights or dL/dlogits, factors of dropout
  float *q, *grad;         // [4, D]
  float* product;          // [4, D↑]

  Scratch(float* memory, int64_t atoms, int64_t dim)
      : line(rounded_up(atoms, W)), dims(rounded_up(dim, kSpan)) {
    for (float** x : {&k, &v, &dk, &dv}) *x = memory, memory += dims * line;
    for (float** x : {&p, &g, &kept}) *x = memory, memory += kRows * line;
    for (float** x : {&q, &grad, &product}) *x = memory, memory += kRows * dims;
  }
};

int64_t scratch_floats(int64_t atoms, int64_t dim) {
  const int64_t line = rounded_up(atoms, W), dims = rounded_up(dim, kSpan);
  return 4 * dims * line + 3 * kRows * (line + dims);
}

// Four queries of one head at a time.
class Head {
 public:
  Head(const PairBiasCall& call, const PairBiasTask& task, int64_t head, const Scratch& scratch)
      : call_(call),
        task_(task),
        head_(head),
        first_pair_(head * call.pairs + task.first_pair),
        s_(scratch) {
    for (float* x : {s_.k, s_.v}) clear(x, s_.dims * s_.line);
    read_columns(call.k, head, task.first_atom, task.atoms, call.dim, s_.line, s_.k);
    read_columns(call.v, head, task.first_atom, task.atoms, call.dim, s_.line, s_.v);
  }

  void forward(const PairBiasResults& results) const {
    for (int64_t i = 0; i < task_.atoms; i += kRows) {
      weigh(i, results.logits);
      if (call_.dropout > 0) {
        drop(i);
        multiply_rows(s_.p);
      }
      multiply_transposed(s_.p, s_.v, call_.dim, s_.line, s_.product);
      write_atoms(results.out, head_, task_.first_atom + i, rows(i), call_.dim, 1, s_.product,
                  s_.dims, 1);
    }
  }

  // With weights p and g = dL/dout · Vᵀ, dL/dlogits = p·(g - Σ p·g) is the gradient of the bias
  // too. The sum uses these very p and g and is divided by Σ p, which rounding keeps from 1, so
  // that a row adds up to 0 as it should.
  void backward(const PairBiasGradients& gradients) const {
    for (float* x : {s_.dk, s_.dv}) clear(x, s_.dims * s_.line);
    for (int64_t i = 0; i < task_.atoms; i += kRows) {
      weigh(i, nullptr);
      read_four(gradients.out, i, 1, s_.grad);
      clear(s_.g, kRows * s_.line);
      multiply(s_.grad, s_.v, call_.dim, s_.line, s_.g);
      if (call_.dropout > 0) {
        drop(i);
        multiply_rows(s_.g);
      }
      // p is needed twice: after dropout for dv, and before it for dL/dlogits, which replaces g.
      for (int64_t r = 0; r < kRows; ++r) differentiate_row(r);
      if (call_.dropout > 0) multiply_rows(s_.p);
      add_outer(s_.grad, s_.p, call_.dim, s_.line, s_.dv);
      for (int64_t r = 0; r < rows(i); ++r) {
        float* row = s_.g + r * s_.line;
        if (gradients.logits) add_pairs(pairs_of(gradients.logits, i + r), task_.atoms, row);
        write_pairs(pairs_of(gradients.bias, i + r), task_.atoms, row);
      }
      add_outer(s_.q, s_.g, call_.dim, s_.line, s_.dk);
      multiply_transposed(s_.g, s_.k, call_.dim, s_.line, s_.product);
      write_atoms(gradients.q, head_, task_.first_atom + i, rows(i), call_.dim, call_.scale,
                  s_.product, s_.dims, 1);
    }
    write_atoms(gradients.k, head_, task_.first_atom, task_.atoms, call_.dim, 1, s_.dk, 1, s_.line);
    write_atoms(gradients.v, head_, task_.first_atom, task_.atoms, call_.dim, 1, s_.dv, 1, s_.line);
  }

 private:
  // How many of the four queries from i on are real.
  int64_t rows(int64_t i) const { return task_.atoms - i < kRows ? task_.atoms - i : kRows; }

  template <typename Float>
  Float* pairs_of(Float* x, int64_t i) const {
    return x + first_pair_ + i * task_.atoms;
  }

  void read_four(const Atoms& x, int64_t i, float factor, float* to) const {
    clear(to, kRows * call_.dim);
    read_rows(x, head_, task_.first_atom + i, rows(i), call_.dim, factor, to);
  }

  // q carries the scale; p takes the weights of four queries, `logits` their logits.
  void weigh(int64_t i, float* logits) const {
    read_four(call_.q, i, call_.scale, s_.q);
    for (int64_t r = 0; r < kRows; ++r) {
      const float* bias = pairs_of(call_.bias, i + r);
      read_pairs(bias, r < rows(i) ? task_.atoms : 0, s_.line, -kInfinity, s_.p + r * s_.line);
    }
    multiply(s_.q, s_.k, call_.dim, s_.line, s_.p);
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = s_.p + r * s_.line;
      if (logits && r < rows(i)) write_pairs(pairs_of(logits, i + r), task_.atoms, row);
      soften(row, s_.line);
    }
  }

  // 0 or 1/(1 - p) for four queries: kept where Philox with key = seed and counter = (j, i, head,
  // molecule) is at least p·2³², as in coattention.
  void drop(int64_t i) const {
    const uint32_t threshold = static_cast<uint32_t>(call_.dropout * 4294967296.0);
    const float factor = static_cast<float>(1 / (1 - call_.dropout));
    BitsVec lanes;
    for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
    const BitsVec head = BitsVec{} + static_cast<uint32_t>(head_);
    const BitsVec molecule = BitsVec{} + static_cast<uint32_t>(task_.molecule);
    for (int64_t r = 0; r < kRows; ++r) {
      const BitsVec query = BitsVec{} + static_cast<uint32_t>(i + r);
      for (int64_t j = 0; j < s_.line; j += W) {
        const BitsVec key = lanes + static_cast<uint32_t>(j);
        const BitsVec word = philox(key, query, head, molecule, call_.seed);
        store(s_.kept + r * s_.line + j,
              choose((IntVec)(word >= threshold), broadcast(factor), Vec{}));
      }
    }
  }

  void multiply_rows(float* x) const {
    for (int64_t j = 0; j < kRows * s_.line; j += W) store(x + j, load(x + j) * load(s_.kept + j));
  }

  void differentiate_row(int64_t r) const {
    const float* p = s_.p + r * s_.line;
    float* g = s_.g + r * s_.line;
    Vec sum{}, weighted_sum{};
    for (int64_t j = 0; j < s_.line; j += W) {
      sum += load(p + j);
      weighted_sum += load(p + j) * load(g + j);
    }
    const float total = sum_lanes(sum), mean = total == 0 ? 0 : sum_lanes(weighted_sum) / total;
    for (int64_t j = 0; j < s_.line; j += W) store(g + j, load(p + j) * (load(g + j) - mean));
  }

  const PairBiasCall& call_;
  const PairBiasTask& task_;
  int64_t head_, first_pair_;
  const Scratch& s_;
};

void forward(const PairBiasCall& call, const PairBiasResults& results, const PairBiasTask& task,
             float* memory) {
  const Scratch scratch(memory, task.atoms, call.dim);
  for (int64_t head = task.first_head; head < task.last_head; ++head) {
    Head(call, task, head, scratch).forward(results);
  }
}

void backward(const PairBiasCall& call, const PairBiasGradients& gradients,
              const PairBiasTask& task, float* memory) {
  const Scratch scratch(memory, task.atoms, call.dim);
  for (int64_t head = task.first_head; head < task.last_head; ++head) {
    Head(call, task, head, scratch).backward(gradients);
  }
}

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const PairBiasKernels pair_bias_kernels;
const PairBiasKernels pair_bias_kernels{kCapability, forward, backward, scratch_floats};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
