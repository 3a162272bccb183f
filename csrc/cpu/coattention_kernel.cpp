// One task of the attention: a molecule, as many heads as a vector has lanes, forward or backward.
//
// Heads are the lanes. q, k, v of the task's heads are laid out [atom, d, head], logits
// [query, key, head]; then every step is lane by lane: a matrix product needs no padding to a
// multiple of anything, softmax no sum across lanes, and a row of a table (hop or knot, all heads
// side by side) is one load that adds to the logits as it is. A molecule of 26 atoms fits in L2.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "coattention_kernel.h"

#include "simd.h"

#ifndef COLLAMO_CAPABILITY
#define COLLAMO_CAPABILITY baseline
#endif

namespace collamo::cpu {
namespace {

constexpr int64_t W = kWidth;
constexpr float kInfinity = __builtin_inff();

// --- matrix products, lane by lane --------------------------------------------------------------

// A matrix of vectors: element (i, j) is at data + i·row + j·column.
struct Matrix {
  float* data;
  int64_t row, column;

  float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

Matrix matrix(float* data, int64_t columns) { return {data, columns * W, W}; }
Matrix transposed(Matrix m) { return {m.data, m.column, m.row}; }
Matrix from_row(Matrix m, int64_t i) { return {m.at(i, 0), m.row, m.column}; }

// Accumulators, one row of y and one element of x must fit the registers: 12 + 3 + 1 of 16.
constexpr int kRows = 4;
constexpr int kColumns = W == 16 ? 6 : 3;

// Terms that are summed in one go. Sums of sums: the rounding of a head of 128 halves.
constexpr int64_t kTerms = 32;

// c[0:Rows, 0:Columns] (+)= Σ_k x[:, k] y[k, :], the block that stays in registers.
template <int Rows, int Columns>
inline void multiply_block(Matrix c, Matrix x, Matrix y, int64_t inner, bool add) {
  const float* left = x.data;
  const float* right = y.data;
  for (int64_t done = 0; done < inner || (done == 0 && !add); done += kTerms, add = true) {
    Vec sum[Rows][Columns] = {};
    const int64_t end = done + kTerms < inner ? done + kTerms : inner;
    for (int64_t k = done; k < end; ++k, left += x.column, right += y.row) {
      Vec b[Columns];
      for (int j = 0; j < Columns; ++j) b[j] = load(right + j * y.column);
      for (int i = 0; i < Rows; ++i) {
        const Vec a = load(left + i * x.row);
        for (int j = 0; j < Columns; ++j) sum[i][j] += a * b[j];
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Columns; ++j) {
        store(c.at(i, j), add ? load(c.at(i, j)) + sum[i][j] : sum[i][j]);
      }
    }
  }
}

template <int Rows, int Columns>
inline int64_t multiply_columns(Matrix c, Matrix x, Matrix y, int64_t inner, int64_t columns,
                                int64_t j, bool add) {
  for (; j + Columns <= columns; j += Columns) {
    const Matrix right{y.at(0, j), y.row, y.column};
    multiply_block<Rows, Columns>({c.at(0, j), c.row, c.column}, x, right, inner, add);
  }
  return j;
}

template <int Rows>
inline void multiply_rows(Matrix c, Matrix x, Matrix y, int64_t inner, int64_t columns, bool add) {
  int64_t j = multiply_columns<Rows, kColumns>(c, x, y, inner, columns, 0, add);
  if (kColumns > 3) j = multiply_columns<Rows, 3>(c, x, y, inner, columns, j, add);
  j = multiply_columns<Rows, 2>(c, x, y, inner, columns, j, add);
  multiply_columns<Rows, 1>(c, x, y, inner, columns, j, add);
}

// c [rows, columns] = x [rows, inner] y [inner, columns], or added to c.
void multiply(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner, int64_t columns,
              bool add) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    multiply_rows<kRows>(from_row(c, i), from_row(x, i), y, inner, columns, add);
  }
  c = from_row(c, i), x = from_row(x, i);
  if (rows - i == 3) multiply_rows<3>(c, x, y, inner, columns, add);
  if (rows - i == 2) multiply_rows<2>(c, x, y, inner, columns, add);
  if (rows - i == 1) multiply_rows<1>(c, x, y, inner, columns, add);
}

// --- between the tensors' layouts and [atom, d, head] -------------------------------------------

template <Element Type>
struct Format;

template <>
struct Format<Element::kFloat> {
  using Scalar = float;
  static Vec widen(const float* from) { return load(from); }
  static void narrow(float* to, Vec x) { store(to, x); }
};

template <>
struct Format<Element::kBFloat16> {
  using Scalar = uint16_t;
  static Vec widen(const uint16_t* from) { return from_bfloat16(load_as<ShortVec>(from)); }
  static void narrow(uint16_t* to, Vec x) {
    const ShortVec bits = to_bfloat16(x);
    std::memcpy(to, &bits, sizeof bits);
  }
};

template <>
struct Format<Element::kHalf> {
  using Scalar = uint16_t;
  static Vec widen(const uint16_t* from) { return from_half(load_as<ShortVec>(from)); }
  static void narrow(uint16_t* to, Vec x) {
    const ShortVec bits = to_half(x);
    std::memcpy(to, &bits, sizeof bits);
  }
};

// `count` elements `stride` apart, 0 in the lanes behind; reads no others.
template <Element Type>
inline Vec gather(const typename Format<Type>::Scalar* from, int64_t stride, int64_t count) {
  if (stride == 1 && count == W) return Format<Type>::widen(from);
  typename Format<Type>::Scalar lanes[W] = {};
  for (int64_t lane = 0; lane < count; ++lane) lanes[lane] = from[lane * stride];
  return Format<Type>::widen(lanes);
}

template <Element Type>
inline void scatter(typename Format<Type>::Scalar* to, Vec x, int64_t stride, int64_t count) {
  if (stride == 1 && count == W) return Format<Type>::narrow(to, x);
  typename Format<Type>::Scalar lanes[W];
  Format<Type>::narrow(lanes, x);
  for (int64_t lane = 0; lane < count; ++lane) to[lane * stride] = lanes[lane];
}

// The heads of a group: the first one and how many there are.
struct Heads {
  int64_t first, count;
};

Heads heads_of(const Call& call, int64_t group) {
  const int64_t rest = call.heads - group * W;
  return {group * W, rest < W ? rest : W};
}

int64_t molecule_offset(const Call& call, const Atoms& x, const Molecule& molecule) {
  return call.packed ? molecule.first_atom * x.atom : molecule.number * x.molecule;
}

// The elements d … d + W - 1 of an atom's heads, as the columns of a square.
template <Element Type>
inline void read_square(const typename Format<Type>::Scalar* from, const Atoms& x, Heads heads,
                        int64_t count, float factor, Vec (&rows)[kWidth]) {
  if (heads.count == W && count == W && x.dim == 1) {  // the usual case, unrolled
#pragma GCC unroll 16
    for (int h = 0; h < kWidth; ++h) rows[h] = factor * Format<Type>::widen(from + h * x.head);
  } else {
    for (int64_t h = 0; h < W; ++h) {
      rows[h] = h < heads.count ? factor * gather<Type>(from + h * x.head, x.dim, count) : Vec{};
    }
  }
  transpose(rows);
}

template <Element Type>
inline void write_square(typename Format<Type>::Scalar* to, const Atoms& x, Heads heads,
                         int64_t count, float factor, Vec (&rows)[kWidth]) {
  transpose(rows);
  if (heads.count == W && count == W && x.dim == 1) {
#pragma GCC unroll 16
    for (int h = 0; h < kWidth; ++h) Format<Type>::narrow(to + h * x.head, factor * rows[h]);
    return;
  }
  for (int64_t h = 0; h < heads.count; ++h) {
    scatter<Type>(to + h * x.head, factor * rows[h], x.dim, count);
  }
}

// The last square of a width that is no multiple of W overlaps the one before: moving some elements
// twice is several times faster than moving single ones.
int64_t square_start(const Call& call, int64_t done) {
  return done + W <= call.dim || call.dim < W ? done : call.dim - W;
}

// The processor does not guess the next atom: its heads lie a row of all heads away.
constexpr int64_t kAhead = 4;

template <typename Scalar>
inline void prefetch(const Scalar* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Scalar);
  for (int64_t d = 0; d < count; d += kLine) __builtin_prefetch(from + d, 0, 2);
}

// to [last - first, D, W] = factor · x[atoms, heads]; the lanes of absent heads are 0.
template <Element Type>
void read_as(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
             int64_t last, float factor, float* to) {
  using Scalar = typename Format<Type>::Scalar;
  const Scalar* base = static_cast<const Scalar*>(x.data) + molecule_offset(call, x, molecule);
  for (int64_t i = first; i < last; ++i) {
    const Scalar* atom = base + molecule.atom[i] * x.atom + heads.first * x.head;
    if (i + kAhead < last) {
      const Scalar* later = base + molecule.atom[i + kAhead] * x.atom + heads.first * x.head;
      for (int64_t h = 0; h < heads.count; ++h) prefetch(later + h * x.head, call.dim);
    }
    for (int64_t done = 0; done < call.dim; done += W) {
      const int64_t d = square_start(call, done), count = call.dim < W ? call.dim : W;
      Vec rows[kWidth];
      read_square<Type>(atom + d * x.dim, x, heads, count, factor, rows);
      float* square = to + d * W;
      if (count == W) {
#pragma GCC unroll 16
        for (int c = 0; c < kWidth; ++c) store(square + c * W, rows[c]);
      } else {
        for (int64_t c = 0; c < count; ++c) store(square + c * W, rows[c]);
      }
    }
    to += call.dim * W;
  }
}

void read(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
          int64_t last, float factor, float* to) {
  switch (x.type) {
    case Element::kFloat:
      return read_as<Element::kFloat>(call, x, molecule, heads, first, last, factor, to);
    case Element::kBFloat16:
      return read_as<Element::kBFloat16>(call, x, molecule, heads, first, last, factor, to);
    case Element::kHalf:
      return read_as<Element::kHalf>(call, x, molecule, heads, first, last, factor, to);
  }
}

// x[atoms, heads] = factor · from [last - first, D, W].
template <Element Type>
void write_as(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads,
              int64_t first, int64_t last, float factor, const float* from) {
  using Scalar = typename Format<Type>::Scalar;
  Scalar* base = static_cast<Scalar*>(x.data) + molecule_offset(call, x, molecule);
  for (int64_t i = first; i < last; ++i) {
    Scalar* atom = base + molecule.atom[i] * x.atom + heads.first * x.head;
    for (int64_t done = 0; done < call.dim; done += W) {
      const int64_t d = square_start(call, done), count = call.dim < W ? call.dim : W;
      const float* square = from + d * W;
      Vec rows[kWidth];
      if (count == W) {
#pragma GCC unroll 16
        for (int c = 0; c < kWidth; ++c) rows[c] = load(square + c * W);
      } else {
        for (int64_t c = 0; c < W; ++c) rows[c] = c < count ? load(square + c * W) : Vec{};
      }
      write_square<Type>(atom + d * x.dim, x, heads, count, factor, rows);
    }
    from += call.dim * W;
  }
}

void write(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
           int64_t last, float factor, const float* from) {
  switch (x.type) {
    case Element::kFloat:
      return write_as<Element::kFloat>(call, x, molecule, heads, first, last, factor, from);
    case Element::kBFloat16:
      return write_as<Element::kBFloat16>(call, x, molecule, heads, first, last, factor, from);
    case Element::kHalf:
      return write_as<Element::kHalf>(call, x, molecule, heads, first, last, factor, from);
  }
}

// --- distances and table cells ------------------------------------------------------------------

// What a row of pairs (one query, all keys of a tile) needs of the radial table.
struct PairRow {
  float* distance;
  float* gamma;  // du/dr
  float* u;
  float* weight[4];  // of value and slope at the left knot, then at the right one
  int32_t* knot;     // the left one
};

float root(float x) { return __builtin_sqrtf(x); }

int32_t type_of(const Call& call, const Molecule& m, int64_t i, int64_t j, int side) {
  if (call.pair_types) return call.pair_types[m.first_pair + m.atom[i] * m.size + m.atom[j]];
  return call.atom_types[2 * (m.first_atom + m.atom[side == 0 ? i : j]) + side];
}

// Coordinates are [3, atoms_row]: whole vectors can be read and written from any atom on.
int64_t atoms_row(int64_t atoms) { return (atoms + 2 * W - 1) / W * W; }

// r, γ and u = γ·r + β of query i and the keys first … last - 1; x is [3, atoms_row].
void measure(const Call& call, const Molecule& m, const float* x, int64_t i, int64_t first,
             int64_t last, const PairRow& row) {
  const float* y = x + atoms_row(m.atoms);
  const float* z = y + atoms_row(m.atoms);
  for (int64_t j = first; j < last; ++j) {
    const float dx = x[j] - x[i], dy = y[j] - y[i], dz = z[j] - z[i];
    row.u[j - first] = row.distance[j - first] = root(dx * dx + dy * dy + dz * dz);
  }
  const float* affine = call.table.affine;
  if (!affine) return;
  for (int64_t j = first; j < last; ++j) {
    const float* query = affine + 2 * type_of(call, m, i, j, 0);
    const float* key = affine + 2 * type_of(call, m, i, j, 1);
    const float gamma = call.atom_types ? query[0] + key[0] : query[0];
    const float beta = call.atom_types ? query[1] + key[1] : query[1];
    row.gamma[j - first] = gamma;
    row.u[j - first] = gamma * row.distance[j - first] + beta;
  }
}

// The block of each u. NaN goes to the first one.
void find_blocks(const RadialTable& table, int64_t count, const PairRow& row) {
  const Vec last = broadcast(static_cast<float>(table.blocks - 1));
  for (int64_t j = 0; j < count; j += W) {
    Vec at = load(row.u + j) * table.per_block - table.start;
    at = choose(at > 0, smaller(at, last), Vec{});
    const IntVec block = __builtin_convertvector(at, IntVec);
    std::memcpy(row.knot + j, &block, sizeof block);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int32_t block = row.knot[j];
    row.weight[0][j] = table.start + static_cast<float>(block);
    row.weight[1][j] = table.cells[block];
    row.weight[2][j] = table.width[block];
    row.knot[j] = table.first[block];
  }
}

// block is a power of two, so u/block and what is left of it are exact. A NaN stays one.
void find_cells(const RadialTable& table, int64_t count, const PairRow& row) {
  find_blocks(table, count, row);
  for (int64_t j = 0; j < count; j += W) {
    const Vec start = load(row.weight[0] + j), cells = load(row.weight[1] + j);
    const Vec width = load(row.weight[2] + j);
    const Vec along = (load(row.u + j) * table.per_block - start) * cells;
    const IntVec cell =
        __builtin_convertvector(choose(along > 0, smaller(along, cells - 1), Vec{}), IntVec);
    Vec f = along - __builtin_convertvector(cell, Vec);
    f = choose(f < 0, Vec{}, choose(f > 1, broadcast(1), f));  // outside only by rounding
    const Vec g = 1 - f, ff = f * f;
    const Vec right = ff * (3 - 2 * f);
    store(row.weight[0] + j, 1 - right);
    store(row.weight[1] + j, width * f * g * g);
    store(row.weight[2] + j, right);
    store(row.weight[3] + j, -width * ff * g);
    const IntVec knot = load_as<IntVec>(row.knot + j) + cell;
    std::memcpy(row.knot + j, &knot, sizeof knot);
  }
}

// A row of a table, all heads of the group, at the place of pair j.
Vec interpolate(const float* rows, int64_t line, const PairRow& row, int64_t j) {
  const float* knot = rows + row.knot[j] * 2 * line;
  Vec phi = row.weight[0][j] * load(knot);
  phi += row.weight[1][j] * load(knot + line);
  phi += row.weight[2][j] * load(knot + 2 * line);
  return phi + row.weight[3][j] * load(knot + 3 * line);
}

// --- logits -------------------------------------------------------------------------------------

int64_t hop_bucket(const Call& call, uint8_t hops) {
  const int64_t last = call.hop_buckets - 1;
  return hops == 255 ? last : (hops < last - 1 ? hops : last - 1);
}

const uint8_t* hop_row(const Call& call, const Molecule& m, int64_t i) {
  return call.hops + m.first_pair + m.atom[i] * m.size;
}

int64_t phi_row(const Call& call, const Molecule& m, int64_t i, int64_t j) {
  if (call.phi_of_all_pairs) return m.first_pair + m.atom[i] * m.size + m.atom[j];
  return m.first_phi + i * m.atoms + j;
}

int64_t pair_offset(const Call& call, const Pairs& x, const Molecule& m, int64_t i, int64_t j) {
  const int64_t molecule = call.packed ? m.first_pair * x.key : m.number * x.molecule;
  const int64_t query = call.packed ? m.size * x.key : x.query;
  return molecule + m.atom[i] * query + m.atom[j] * x.key;
}

template <Element Type>
Vec read_pair(const Pairs& x, int64_t offset, Heads heads) {
  using Scalar = typename Format<Type>::Scalar;
  const Scalar* data = static_cast<const Scalar*>(x.data) + offset + heads.first * x.head;
  return gather<Type>(data, x.head, heads.count);
}

Vec read_pair(const Pairs& x, int64_t offset, Heads heads) {
  if (x.type == Element::kFloat) return read_pair<Element::kFloat>(x, offset, heads);
  if (x.type == Element::kHalf) return read_pair<Element::kHalf>(x, offset, heads);
  return read_pair<Element::kBFloat16>(x, offset, heads);
}

template <Element Type>
void write_pair(const Pairs& x, int64_t offset, Heads heads, Vec value) {
  using Scalar = typename Format<Type>::Scalar;
  Scalar* data = static_cast<Scalar*>(x.data) + offset + heads.first * x.head;
  scatter<Type>(data, value, x.head, heads.count);
}

void write_pair(const Pairs& x, int64_t offset, Heads heads, Vec value) {
  if (x.type == Element::kFloat) return write_pair<Element::kFloat>(x, offset, heads, value);
  if (x.type == Element::kHalf) return write_pair<Element::kHalf>(x, offset, heads, value);
  write_pair<Element::kBFloat16>(x, offset, heads, value);
}

// Memory of one task, handed out from front to back in whole vectors.
class Scratch {
 public:
  explicit Scratch(float* data) : next_(data) {}
  float* floats(int64_t count) {
    float* here = next_;
    next_ += (count + W - 1) / W * W;
    return here;
  }

 private:
  float* next_;
};

// The molecule and heads of a task, and the parts of the logits that depend on pairs alone.
class PairTerms {
 public:
  PairTerms(const Call& call, const Molecule& molecule, int64_t group, int64_t keys,
            Scratch& scratch)
      : call_(call),
        molecule_(molecule),
        heads_(heads_of(call, group)),
        hop_rows_(call.hop_rows ? call.hop_rows + group * W : nullptr),
        table_rows_(call.table.rows ? call.table.rows + group * W : nullptr),
        line_(call.groups * W),
        has_table_(call.table.rows && molecule.has_distances),
        has_phi_(call.phi && molecule.has_distances) {
    const int64_t line = atoms_row(molecule.atoms);
    x_ = scratch.floats(3 * line);
    row_.distance = scratch.floats(keys);
    row_.gamma = scratch.floats(keys);
    row_.u = scratch.floats(keys);
    for (float*& weight : row_.weight) weight = scratch.floats(keys);
    row_.knot = reinterpret_cast<int32_t*>(scratch.floats(keys));
    if (!has_table_) return;
    std::memset(x_, 0, 3 * line * sizeof(float));
    for (int64_t i = 0; i < molecule.atoms; ++i) {
      const float* from = call.coordinates + 3 * (molecule.first_atom + molecule.atom[i]);
      for (int axis = 0; axis < 3; ++axis) x_[axis * line + i] = from[axis];
    }
  }

  static int64_t floats(int64_t atoms, int64_t keys) {
    return 3 * atoms_row(atoms) + 8 * keys + 8 * W;
  }

  // Adds Φ2d, Φ3d and the bias of query i and keys first … last - 1 to the logits s [keys, W].
  void add(int64_t i, int64_t first, int64_t last, float* s) {
    if (has_table_) {
      measure(call_, molecule_, x_, i, first, last, row_);
      find_cells(call_.table, last - first, row_);
    }
    if (has_table_ && hop_rows_) add_rows<true, true>(i, first, last, s);
    if (has_table_ && !hop_rows_) add_rows<true, false>(i, first, last, s);
    if (!has_table_ && hop_rows_) add_rows<false, true>(i, first, last, s);
    if (has_phi_) add_phi(i, first, last, s);
    if (call_.bias.data) add_bias(i, first, last, s);
  }

  bool has_table() const { return has_table_; }
  bool has_phi() const { return has_phi_; }
  Heads heads() const { return heads_; }
  const PairRow& row() const { return row_; }  // of the query added last
  const float* x() const { return x_; }

 private:
  // Both in one pass, which is the usual case.
  template <bool Table, bool Hops>
  void add_rows(int64_t i, int64_t first, int64_t last, float* s) const {
    const uint8_t* hops = Hops ? hop_row(call_, molecule_, i) : nullptr;
    for (int64_t j = first; j < last; ++j, s += W) {
      Vec logit = load(s);
      if (Table) logit += interpolate(table_rows_, line_, row_, j - first);
      if (Hops) logit += load(hop_rows_ + hop_bucket(call_, hops[molecule_.atom[j]]) * line_);
      store(s, logit);
    }
  }

  void add_phi(int64_t i, int64_t first, int64_t last, float* s) const {
    for (int64_t j = first; j < last; ++j, s += W) {
      const float* row = call_.phi + phi_row(call_, molecule_, i, j) * call_.heads + heads_.first;
      add_to(s, gather<Element::kFloat>(row, 1, heads_.count));
    }
  }

  void add_bias(int64_t i, int64_t first, int64_t last, float* s) const {
    for (int64_t j = first; j < last; ++j, s += W) {
      add_to(s, read_pair(call_.bias, pair_offset(call_, call_.bias, molecule_, i, j), heads_));
    }
  }

  const Call& call_;
  const Molecule& molecule_;
  Heads heads_;
  const float* hop_rows_;
  const float* table_rows_;
  int64_t line_;
  bool has_table_, has_phi_;
  float* x_;  // [3, atoms_row]
  PairRow row_;
};

// --- dropout ------------------------------------------------------------------------------------

// 0 or 1/(1 - p) for the pair (i, j) of each head: the first word of Philox4x32-10 (Salmon et al.
// 2011) with key = seed and counter = (j, i, head, molecule), kept where it is at least p·2³².
// Atoms are counted by their place in the molecule, so both layouts drop the same weights.
Vec dropout_factor(const Call& call, const Molecule& m, Heads heads, int64_t i, int64_t j) {
  uint32_t c0[W], c1[W], c2[W], c3[W];
  for (int64_t h = 0; h < W; ++h) {
    c0[h] = static_cast<uint32_t>(m.atom[j]);
    c1[h] = static_cast<uint32_t>(m.atom[i]);
    c2[h] = static_cast<uint32_t>(heads.first + h);
    c3[h] = static_cast<uint32_t>(m.number);
  }
  uint32_t key0 = static_cast<uint32_t>(call.seed), key1 = static_cast<uint32_t>(call.seed >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    for (int64_t h = 0; h < W; ++h) {
      const uint64_t a = uint64_t{0xD2511F53u} * c0[h], b = uint64_t{0xCD9E8D57u} * c2[h];
      c0[h] = static_cast<uint32_t>(b >> 32) ^ c1[h] ^ key0;
      c2[h] = static_cast<uint32_t>(a >> 32) ^ c3[h] ^ key1;
      c1[h] = static_cast<uint32_t>(b);
      c3[h] = static_cast<uint32_t>(a);
    }
  }
  const uint32_t threshold = static_cast<uint32_t>(call.dropout * 4294967296.0);
  const float kept = static_cast<float>(1 / (1 - call.dropout));
  Vec factor{};
  for (int64_t h = 0; h < W; ++h) factor[h] = c0[h] >= threshold ? kept : 0.0f;
  return factor;
}

// --- forward ------------------------------------------------------------------------------------

// s [keys, W] becomes e^(s - max); returns log Σ e^s and, through `inverse`, 1 / Σ e^(s - max):
// +inf and 0 where every key is excluded.
Vec soften(float* s, int64_t keys, Vec& inverse) {
  Vec most = broadcast(-kInfinity);
  for (int64_t j = 0; j < keys; ++j) most = larger(most, load(s + j * W));
  const IntVec dead = most == -kInfinity;
  const Vec shift = choose(dead, Vec{}, most);
  Vec sum{};
  for (int64_t j = 0; j < keys; ++j) {
    const Vec p = exponential(load(s + j * W) - shift);
    store(s + j * W, p);
    sum += p;
  }
  Vec lse{};
  for (int64_t h = 0; h < W; ++h) lse[h] = __builtin_logf(sum[h]);
  inverse = choose(dead, Vec{}, 1.0f / sum);
  return choose(dead, broadcast(kInfinity), shift + lse);
}

// Rows of logits that are worked on at a time: as many as keep them in half of a 32 KiB L1, or all.
int64_t rows_at_a_time(int64_t keys) {
  const int64_t rows = 4096 / ((keys ? keys : 1) * W) / kRows * kRows;
  return rows < kRows ? kRows : rows;
}

int64_t forward_scratch(const Call& call, int64_t atoms, int64_t rows) {
  const int64_t at_a_time = rows_at_a_time(atoms) < rows ? rows_at_a_time(atoms) : rows;
  return PairTerms::floats(atoms, atoms) +
         W * (2 * atoms * call.dim + at_a_time * (2 * call.dim + atoms + 1));
}

void write_zeros(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads) {
  const int64_t bytes = x.type == Element::kFloat ? 4 : 2;
  char* base = static_cast<char*>(x.data) + molecule_offset(call, x, molecule) * bytes;
  for (int64_t i = 0, next = 0; i < molecule.size; ++i) {
    if (next < molecule.atoms && molecule.atom[next] == i) {
      ++next;
      continue;
    }
    for (int64_t h = heads.first; h < heads.first + heads.count; ++h) {
      char* row = base + (i * x.atom + h * x.head) * bytes;
      for (int64_t d = 0; d < call.dim; ++d) std::memset(row + d * x.dim * bytes, 0, bytes);
    }
  }
}

void write_lse(const Call& call, const Molecule& m, Heads heads, int64_t i, Vec lse) {
  float* to = call.lse + (m.first_atom + m.atom[i]) * call.heads + heads.first;
  scatter<Element::kFloat>(to, lse, 1, heads.count);
}

void drop(const Call& call, const Molecule& m, Heads heads, int64_t i, float* p) {
  for (int64_t j = 0; j < m.atoms; ++j, p += W) {
    store(p, load(p) * dropout_factor(call, m, heads, i, j));
  }
}

void forward(const Call& call, const ForwardTask& task, float* memory) {
  const Molecule& m = *task.molecule;
  const int64_t keys = m.atoms, dim = call.dim, rows = task.last - task.first;
  const int64_t at_a_time = rows_at_a_time(keys) < rows ? rows_at_a_time(keys) : rows;
  Scratch scratch(memory);
  PairTerms terms(call, m, task.group, keys, scratch);
  const Heads heads = terms.heads();
  const Matrix k = matrix(scratch.floats(keys * dim * W), dim);
  const Matrix v = matrix(scratch.floats(keys * dim * W), dim);
  const Matrix q = matrix(scratch.floats(at_a_time * dim * W), dim);
  const Matrix out = matrix(scratch.floats(at_a_time * dim * W), dim);
  const Matrix s = matrix(scratch.floats(at_a_time * keys * W), keys);
  if (task.first == 0) write_zeros(call, call.out, m, heads);
  read(call, call.k, m, heads, 0, keys, 1, k.data);
  read(call, call.v, m, heads, 0, keys, 1, v.data);
  for (int64_t first = task.first; first < task.last; first += at_a_time) {
    const int64_t last = first + at_a_time < task.last ? first + at_a_time : task.last;
    read(call, call.q, m, heads, first, last, call.scale, q.data);
    multiply(s, q, transposed(k), last - first, dim, keys, false);
    for (int64_t i = first; i < last; ++i) {
      float* row = s.at(i - first, 0);
      terms.add(i, 0, keys, row);
      Vec inverse;
      write_lse(call, m, heads, i, soften(row, keys, inverse));
      if (call.dropout > 0) drop(call, m, heads, i, row);
      for (int64_t j = 0; j < keys; ++j) store(row + j * W, load(row + j * W) * inverse);
    }
    multiply(out, s, v, last - first, keys, dim, false);
    write(call, call.out, m, heads, first, last, 1, out.data);
  }
}

// --- backward -----------------------------------------------------------------------------------

// Pairs of a tile: their weights and dL/ds stay in L2, and a typical molecule is one tile.
constexpr int64_t kPairsOfTile = 1600;

// Queries of a tile, which has all keys of the task.
int64_t tile_rows(int64_t atoms, int64_t keys) {
  if (atoms * keys <= kPairsOfTile) return atoms;
  const int64_t most = kPairsOfTile / keys / kRows * kRows;
  return most < kRows ? kRows : most;
}

// Gradients of the terms of one query's pairs, given ds [keys, W].
class PairGradients {
 public:
  PairGradients(const Call& call, const Gradients& gradients, const BackwardTask& task,
                const PairTerms& terms)
      : call_(call), gradients_(gradients), task_(task), m_(*task.molecule), terms_(terms) {}

  void add(int64_t i, int64_t first, int64_t last, const float* ds) const {
    if (terms_.has_table() && task_.radial_rows) add_table(last - first, ds);
    if (terms_.has_table() && (task_.affine || task_.coordinates)) add_u(i, first, last, ds);
    if (task_.hop_rows) add_hops(i, first, last, ds);
    if (terms_.has_phi() && gradients_.phi) write_phi(i, first, last, ds);
    if (gradients_.bias.data) write_bias(i, first, last, ds);
  }

 private:
  void add_table(int64_t count, const float* ds) const {
    const PairRow& row = terms_.row();
    const int64_t line = call_.groups * W;
    for (int64_t j = 0; j < count; ++j, ds += W) {
      float* knot = task_.radial_rows + row.knot[j] * 2 * line;
      const Vec x = load(ds);
      add_to(knot, row.weight[0][j] * x);
      add_to(knot + line, row.weight[1][j] * x);
      add_to(knot + 2 * line, row.weight[2][j] * x);
      add_to(knot + 3 * line, row.weight[3][j] * x);
    }
  }

  void add_hops(int64_t i, int64_t first, int64_t last, const float* ds) const {
    const uint8_t* hops = hop_row(call_, m_, i);
    const int64_t line = call_.groups * W;
    for (int64_t j = first; j < last; ++j, ds += W) {
      add_to(task_.hop_rows + hop_bucket(call_, hops[m_.atom[j]]) * line, load(ds));
    }
  }

  void write_phi(int64_t i, int64_t first, int64_t last, const float* ds) const {
    const Heads heads = terms_.heads();
    for (int64_t j = first; j < last; ++j, ds += W) {
      float* row = gradients_.phi + phi_row(call_, m_, i, j) * call_.heads + heads.first;
      scatter<Element::kFloat>(row, load(ds), 1, heads.count);
    }
  }

  void write_bias(int64_t i, int64_t first, int64_t last, const float* ds) const {
    for (int64_t j = first; j < last; ++j, ds += W) {
      const int64_t offset = pair_offset(call_, gradients_.bias, m_, i, j);
      write_pair(gradients_.bias, offset, terms_.heads(), load(ds));
    }
  }

  // dL/du of a pair is a sum over heads; it goes on to γ, β and, through r, to both atoms. Takes
  // the place of u, which is not needed any more.
  void add_u(int64_t i, int64_t first, int64_t last, const float* ds) const {
    const PairRow& row = terms_.row();
    const float* slopes = call_.table.slope_rows + task_.group * W;
    const int64_t line = call_.groups * W;
    float* du = row.u;
    for (int64_t j = 0; j < last - first; ++j, ds += W) {
      du[j] = sum_lanes(load(ds) * interpolate(slopes, line, row, j));
    }
    if (task_.affine) add_affine(i, first, last, du);
    if (task_.coordinates) push(i, first, last, du);
  }

  void add_affine(int64_t i, int64_t first, int64_t last, const float* du) const {
    for (int64_t j = first; j < last; ++j) {
      for (int side = 0; side < (call_.atom_types ? 2 : 1); ++side) {
        float* to = task_.affine + 2 * type_of(call_, m_, i, j, side);
        to[0] += du[j - first] * terms_.row().distance[j - first];
        to[1] += du[j - first];
      }
    }
  }

  // Becomes dL/dr / r, 0 where r is and behind the last key; then the forces on i and on the keys.
  void push(int64_t i, int64_t first, int64_t last, float* du) const {
    const PairRow& row = terms_.row();
    const int64_t count = last - first, line = atoms_row(m_.atoms);
    for (int64_t j = 0; j < count; ++j) {
      const float gamma = call_.table.affine ? row.gamma[j] : 1.0f, r = row.distance[j];
      du[j] = r > 0 ? du[j] * gamma / r : 0.0f;
    }
    for (int64_t j = count; j % W; ++j) du[j] = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const float* x = terms_.x() + axis * line;
      float* to = task_.coordinates + axis * line;
      Vec sum{};
      for (int64_t j = 0; j < count; j += W) {
        const Vec force = load(du + j) * (x[i] - load(x + first + j));
        add_to(to + first + j, -force);
        sum += force;
      }
      to[i] += sum_lanes(sum);
    }
  }

  const Call& call_;
  const Gradients& gradients_;
  const BackwardTask& task_;
  const Molecule& m_;
  const PairTerms& terms_;
};

// p [keys, W] becomes the weights of query i, before dropout. Where all keys are here they are
// made to add up to 1: the rounding of lse, 2e-7 at 5, is larger than all other errors of a weight.
void weigh(const Call& call, const Molecule& m, Heads heads, int64_t i, int64_t keys, bool all,
           float* p) {
  const float* from = call.lse + (m.first_atom + m.atom[i]) * call.heads + heads.first;
  const Vec lse = gather<Element::kFloat>(from, 1, heads.count);
  Vec sum{};
  for (int64_t j = 0; j < keys; ++j) {
    const Vec weight = exponential(load(p + j * W) - lse);
    store(p + j * W, weight);
    sum += weight;
  }
  if (!all) return;
  const Vec scale = choose(sum == 0, Vec{}, 1.0f / sum);
  for (int64_t j = 0; j < keys; ++j) store(p + j * W, load(p + j * W) * scale);
}

// Σ_d a·b, for rows of D vectors.
Vec dot(const float* a, const float* b, int64_t count) {
  Vec sum{};
  for (int64_t d = 0; d < count; ++d) sum += load(a + d * W) * load(b + d * W);
  return sum;
}

// dL/ds = p·(g - Σ p·g), with g = dL/dp, the gradient of one row of weights. The sum is taken over
// the very p and g that are used, so a row of dL/ds adds up to 0 as it should; `delta`, the same
// number from the result, is for a task that has not all keys.
void soften_gradient(const float* p, int64_t keys, const Vec* delta, float* ds) {
  Vec mean{};
  for (int64_t j = 0; !delta && j < keys; ++j) mean += load(p + j * W) * load(ds + j * W);
  if (delta) mean = *delta;
  for (int64_t j = 0; j < keys; ++j) {
    store(ds + j * W, load(p + j * W) * (load(ds + j * W) - mean));
  }
}

void multiply_row(float* x, const float* factors, int64_t keys) {
  for (int64_t j = 0; j < keys; ++j) store(x + j * W, load(x + j * W) * load(factors + j * W));
}

class BackwardKernel {
 public:
  BackwardKernel(const Call& call, const Gradients& gradients, const BackwardTask& task,
                 Scratch& scratch)
      : call_(call),
        gradients_(gradients),
        task_(task),
        m_(*task.molecule),
        keys_(task.last - task.first),
        rows_(tile_rows(m_.atoms, keys_)),
        terms_(call, m_, task.group, keys_, scratch),
        heads_(terms_.heads()),
        pairs_(call, gradients, task, terms_) {
    const int64_t dim = call.dim;
    for (Matrix* x : {&k_, &v_, &dk_, &dv_}) *x = matrix(scratch.floats(keys_ * dim * W), dim);
    for (Matrix* x : {&q_, &grad_, &dq_}) *x = matrix(scratch.floats(rows_ * dim * W), dim);
    for (Matrix* x : {&p_, &ds_}) *x = matrix(scratch.floats(rows_ * keys_ * W), keys_);
    factors_ = scratch.floats(keys_ * W);
  }

  static int64_t scratch_floats(const Call& call, int64_t atoms, int64_t keys) {
    const int64_t rows = tile_rows(atoms, keys);
    return PairTerms::floats(atoms, keys) +
           W * ((4 * keys + 3 * rows) * call.dim + 2 * rows * keys + keys);
  }

  void run() {
    read(call_, call_.k, m_, heads_, task_.first, task_.last, 1, k_.data);
    read(call_, call_.v, m_, heads_, task_.first, task_.last, 1, v_.data);
    for (int64_t first = 0; first < m_.atoms; first += rows_) {
      run_tile(first, first + rows_ < m_.atoms ? first + rows_ : m_.atoms);
    }
    write(call_, gradients_.k, m_, heads_, task_.first, task_.last, 1, dk_.data);
    write(call_, gradients_.v, m_, heads_, task_.first, task_.last, 1, dv_.data);
    if (task_.first > 0) return;
    for (const Atoms* x : {&gradients_.q, &gradients_.k, &gradients_.v}) {
      write_zeros(call_, *x, m_, heads_);
    }
  }

 private:
  void run_tile(int64_t first, int64_t last) {
    const int64_t rows = last - first, dim = call_.dim;
    read(call_, call_.q, m_, heads_, first, last, call_.scale, q_.data);
    read(call_, gradients_.out, m_, heads_, first, last, 1, grad_.data);
    if (task_.q) read(call_, call_.out, m_, heads_, first, last, 1, dq_.data);
    multiply(p_, q_, transposed(k_), rows, dim, keys_, false);
    multiply(ds_, grad_, transposed(v_), rows, dim, keys_, false);
    for (int64_t i = first; i < last; ++i) run_row(i, i - first);
    multiply(dv_, transposed(p_), grad_, keys_, rows, dim, first > 0);
    multiply(dk_, transposed(ds_), q_, keys_, rows, dim, first > 0);
    const Matrix dq = task_.q ? matrix(task_.q + first * dim * W, dim) : dq_;
    multiply(dq, ds_, k_, rows, keys_, dim, false);
    if (!task_.q) write(call_, gradients_.q, m_, heads_, first, last, call_.scale, dq_.data);
  }

  void run_row(int64_t i, int64_t row) {
    float *p = p_.at(row, 0), *ds = ds_.at(row, 0);
    terms_.add(i, task_.first, task_.last, p);
    weigh(call_, m_, heads_, i, keys_, !task_.q, p);
    if (call_.dropout > 0) {
      for (int64_t j = 0; j < keys_; ++j) {
        store(factors_ + j * W, dropout_factor(call_, m_, heads_, i, task_.first + j));
      }
      multiply_row(ds, factors_, keys_);
    }
    const Vec delta = task_.q ? dot(grad_.at(row, 0), dq_.at(row, 0), call_.dim) : Vec{};
    soften_gradient(p, keys_, task_.q ? &delta : nullptr, ds);
    if (call_.dropout > 0) multiply_row(p, factors_, keys_);
    pairs_.add(i, task_.first, task_.last, ds);
  }

  const Call& call_;
  const Gradients& gradients_;
  const BackwardTask& task_;
  const Molecule& m_;
  int64_t keys_, rows_;  // of the task, of a tile
  PairTerms terms_;
  Heads heads_;
  PairGradients pairs_;
  Matrix k_, v_, dk_, dv_;  // [keys, D]
  Matrix q_, grad_, dq_;    // [rows, D]; q carries the scale; dq holds the result's rows at first
  Matrix p_, ds_;           // [rows, keys]
  float* factors_;          // of dropout, one row
};

int64_t backward_scratch(const Call& call, int64_t atoms, int64_t keys) {
  return BackwardKernel::scratch_floats(call, atoms, keys);
}

void backward(const Call& call, const Gradients& gradients, const BackwardTask& task,
              float* memory) {
  Scratch scratch(memory);
  BackwardKernel(call, gradients, task, scratch).run();
}

void write_query_gradient(const Call& call, const Gradients& gradients, const Molecule& m,
                          int64_t group, float* const* parts, int64_t count) {
  const int64_t floats = m.atoms * call.dim * W;
  for (int64_t part = 1; part < count; ++part) {
    for (int64_t at = 0; at < floats; at += W) add_to(parts[0] + at, load(parts[part] + at));
  }
  write(call, gradients.q, m, heads_of(call, group), 0, m.atoms, call.scale, parts[0]);
}

#define COLLAMO_TEXT(x) #x
#define COLLAMO_NAME(x) COLLAMO_TEXT(x)

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const Kernels kernels;
const Kernels kernels{COLLAMO_NAME(COLLAMO_CAPABILITY),
                      W,
                      forward,
                      backward,
                      write_query_gradient,
                      atoms_row,
                      forward_scratch,
                      backward_scratch};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
