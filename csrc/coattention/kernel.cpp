// One task of the attention: a molecule and its heads, forward or backward.
//
// Heads are the lanes: as many as a vector has are a group, and are worked on together. q, k, v of
// a group are laid out [atom, d, head], logits [query, key, head]; then every step is lane by lane:
// a matrix product needs no padding to a multiple of anything, softmax no sum across lanes, and a
// row of a table (hop or knot, all heads side by side) is one load that adds to the logits as it
// is. What depends on the pair alone is found once for all groups. A molecule of 26 atoms fits in
// L2.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "../simd.h"

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
Matrix from_column(Matrix m, int64_t j) { return {m.at(0, j), m.row, m.column}; }

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

template <int Columns>
inline void multiply_panel(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner, bool add) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    multiply_block<kRows, Columns>(from_row(c, i), from_row(x, i), y, inner, add);
  }
  c = from_row(c, i), x = from_row(x, i);
  if (rows - i == 3) multiply_block<3, Columns>(c, x, y, inner, add);
  if (rows - i == 2) multiply_block<2, Columns>(c, x, y, inner, add);
  if (rows - i == 1) multiply_block<1, Columns>(c, x, y, inner, add);
}

template <int Columns>
inline int64_t multiply_panels(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner,
                               int64_t columns, int64_t j, bool add) {
  for (; j + Columns <= columns; j += Columns) {
    multiply_panel<Columns>(from_column(c, j), x, from_column(y, j), rows, inner, add);
  }
  return j;
}

// c [rows, columns] = x [rows, inner] y [inner, columns], or added to c. A panel of y stays in L1.
void multiply(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner, int64_t columns,
              bool add) {
  int64_t j = multiply_panels<kColumns>(c, x, y, rows, inner, columns, 0, add);
  if (kColumns > 3) j = multiply_panels<3>(c, x, y, rows, inner, columns, j, add);
  j = multiply_panels<2>(c, x, y, rows, inner, columns, j, add);
  multiply_panels<1>(c, x, y, rows, inner, columns, j, add);
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

// The processor does not guess the next atom: its heads lie a row of all heads away. Inlined by
// force: gcc takes a function that only prefetches for one without effect, and drops its calls.
constexpr int64_t kAhead = 4;

[[gnu::always_inline]] inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

template <typename Scalar>
[[gnu::always_inline]] inline void prefetch_atom(const Scalar* atom, const Atoms& x, Heads heads,
                                                 int64_t dim) {
  const char* bytes = reinterpret_cast<const char*>(atom);
  const int64_t size = sizeof(Scalar);
  if (x.head == dim) return prefetch(bytes, heads.count * dim * size);
  for (int64_t h = 0; h < heads.count; ++h) prefetch(bytes + h * x.head * size, dim * size);
}

// Of what is read or written soon.
[[gnu::always_inline]] inline void prefetch_atoms(const Call& call, const Atoms& x,
                                                  const Molecule& m, Heads heads, int64_t first,
                                                  int64_t last) {
  const int64_t start = molecule_offset(call, x, m) + heads.first * x.head;
  for (int64_t i = first; i < last && i < m.atoms; ++i) {
    const int64_t at = start + m.atom[i] * x.atom;
    if (x.type == Element::kFloat) {
      prefetch_atom(static_cast<const float*>(x.data) + at, x, heads, call.dim);
    } else {
      prefetch_atom(static_cast<const uint16_t*>(x.data) + at, x, heads, call.dim);
    }
  }
}

// Whether an atom's heads fill vectors that lie in memory as they are.
inline bool whole(const Call& call, const Atoms& x, Heads heads) {
  return heads.count == W && x.dim == 1 && call.dim >= W;
}

// to [W, W] = the elements from[0 … W - 1] of every head, transposed.
template <Element Type>
inline void read_square(const typename Format<Type>::Scalar* from, int64_t head, Vec factor,
                        float* to) {
  Vec rows[W];
#pragma GCC unroll 16
  for (int h = 0; h < W; ++h) rows[h] = factor * Format<Type>::widen(from + h * head);
  transpose(rows);
#pragma GCC unroll 16
  for (int d = 0; d < W; ++d) store(to + d * W, rows[d]);
}

// to [W/2, W] = the elements from[W/2 … W - 1] alone, for half as many exchanges.
template <Element Type>
inline void read_half_square(const typename Format<Type>::Scalar* from, int64_t head, Vec factor,
                             float* to) {
  Vec rows[W / 2];
#pragma GCC unroll 8
  for (int h = 0; h < W / 2; ++h) {
    const Vec a = Format<Type>::widen(from + h * head);
    const Vec b = Format<Type>::widen(from + (h + W / 2) * head);
    rows[h] = factor * exchange<W / 2, false>(a, b, CountLanes<kWidth>::type{});
  }
  transpose(rows);
#pragma GCC unroll 8
  for (int d = 0; d < W / 2; ++d) store(to + d * W, rows[d]);
}

// to [D, W] = factor · x[atom, heads]; the lanes of absent heads are 0.
template <Element Type>
inline void read_atom(const typename Format<Type>::Scalar* atom, const Call& call, const Atoms& x,
                      Heads heads, Vec factor, float* to) {
  if (!whole(call, x, heads)) {
    for (int64_t d = 0; d < call.dim; ++d) {
      store(to + d * W, factor * gather<Type>(atom + d * x.dim, x.head, heads.count));
    }
    return;
  }
  int64_t d = 0;
  for (; d + W <= call.dim; d += W) read_square<Type>(atom + d, x.head, factor, to + d * W);
  // The last elements of a width that is no multiple of W are the end of a square that overlaps.
  const int64_t rest = call.dim - d, last = call.dim - W;
  if (rest > W / 2) {
    read_square<Type>(atom + last, x.head, factor, to + last * W);
  } else if (rest > 0) {
    read_half_square<Type>(atom + last, x.head, factor, to + (last + W / 2) * W);
  }
}

// to [last - first, D, W] = factor · x[atoms, heads].
template <Element Type>
void read_as(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
             int64_t last, float factor, float* to) {
  using Scalar = typename Format<Type>::Scalar;
  const Scalar* base = static_cast<const Scalar*>(x.data) + molecule_offset(call, x, molecule) +
                       heads.first * x.head;
  for (int64_t i = first; i < last; ++i, to += call.dim * W) {
    if (i + kAhead < molecule.atoms) {  // also of what is read next
      prefetch_atom(base + molecule.atom[i + kAhead] * x.atom, x, heads, call.dim);
    }
    const Scalar* atom = base + molecule.atom[i] * x.atom;
    read_atom<Type>(atom, call, x, heads, broadcast(factor), to);
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

template <Element Type>
inline void write_square(typename Format<Type>::Scalar* to, int64_t head, Vec factor,
                         const float* from) {
  Vec rows[W];
#pragma GCC unroll 16
  for (int d = 0; d < W; ++d) rows[d] = factor * load(from + d * W);
  transpose(rows);
#pragma GCC unroll 16
  for (int h = 0; h < W; ++h) Format<Type>::narrow(to + h * head, rows[h]);
}

// x[atom, heads] = factor · from [D, W]. Squares overlap: writing some elements twice is several
// times faster than writing single ones.
template <Element Type>
inline void write_atom(typename Format<Type>::Scalar* atom, const Call& call, const Atoms& x,
                       Heads heads, Vec factor, const float* from) {
  if (!whole(call, x, heads)) {
    for (int64_t d = 0; d < call.dim; ++d) {
      scatter<Type>(atom + d * x.dim, factor * load(from + d * W), x.head, heads.count);
    }
    return;
  }
  for (int64_t done = 0; done < call.dim; done += W) {
    const int64_t d = done + W <= call.dim ? done : call.dim - W;
    write_square<Type>(atom + d, x.head, factor, from + d * W);
  }
}

// x[atoms, heads] = factors · from [last - first, D, W]; factors [last - first, W] or, with
// step = 0, [W].
template <Element Type>
void write_as(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads,
              int64_t first, int64_t last, const float* factors, int64_t step, const float* from) {
  using Scalar = typename Format<Type>::Scalar;
  Scalar* base =
      static_cast<Scalar*>(x.data) + molecule_offset(call, x, molecule) + heads.first * x.head;
  for (int64_t i = first; i < last; ++i, factors += step, from += call.dim * W) {
    Scalar* atom = base + molecule.atom[i] * x.atom;
    write_atom<Type>(atom, call, x, heads, load(factors), from);
  }
}

void write(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
           int64_t last, const float* factors, int64_t step, const float* from) {
  switch (x.type) {
    case Element::kFloat:
      return write_as<Element::kFloat>(call, x, molecule, heads, first, last, factors, step, from);
    case Element::kBFloat16:
      return write_as<Element::kBFloat16>(call, x, molecule, heads, first, last, factors, step,
                                          from);
    case Element::kHalf:
      return write_as<Element::kHalf>(call, x, molecule, heads, first, last, factors, step, from);
  }
}

void write(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
           int64_t last, float factor, const float* from) {
  float factors[W];
  store(factors, broadcast(factor));
  write(call, x, molecule, heads, first, last, factors, 0, from);
}

// Whether the place of every group's heads in x takes [D, W] as they are, atom after atom: sums can
// be kept there until `turn`.
bool takes_lanes(const Call& call, const Atoms& x, const Molecule& m) {
  const bool consecutive = m.atoms == 0 || m.atom[m.atoms - 1] == m.atoms - 1;
  return x.type == Element::kFloat && x.dim == 1 && x.head == call.dim && call.heads % W == 0 &&
         consecutive;
}

// x[atoms, heads] = what is there as [D, W]; `copy` has room for one atom.
void turn(const Call& call, const Atoms& x, const Molecule& molecule, Heads heads, int64_t first,
          int64_t last, float* copy) {
  float* base =
      static_cast<float*>(x.data) + molecule_offset(call, x, molecule) + heads.first * x.head;
  for (int64_t i = first; i < last; ++i) {
    float* atom = base + i * x.atom;
    std::memcpy(copy, atom, call.dim * W * sizeof(float));
    write_atom<Element::kFloat>(atom, call, x, heads, broadcast(1), copy);
  }
}

// --- distances and table cells ------------------------------------------------------------------

// What a row of pairs (one query, all keys of a tile) needs of the tables. Whole vectors: what is
// behind the last key is never read as data.
struct PairRow {
  float* distance;
  float* gamma;  // du/dr
  float* u;
  float* weight[4];  // of value and slope at the left knot, then at the right one
  int32_t* knot;     // where the left one's rows start
  int32_t* hop;      // where its row of the hop table starts
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
    // Unsigned, because there may be anything behind the last key.
    const BitsVec knot = (load_as<BitsVec>(row.knot + j) + (BitsVec)cell) * 2;
    std::memcpy(row.knot + j, &knot, sizeof knot);
  }
}

// A row of a table, all heads of the group, at the place of pair j.
Vec interpolate(const float* rows, int64_t line, const PairRow& row, int64_t j) {
  const float* knot = rows + row.knot[j] * line;
  Vec phi = row.weight[0][j] * load(knot);
  phi += row.weight[1][j] * load(knot + line);
  phi += row.weight[2][j] * load(knot + 2 * line);
  return phi + row.weight[3][j] * load(knot + 3 * line);
}

// --- logits -------------------------------------------------------------------------------------

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

// The parts of the logits that depend on pairs alone: some queries of a molecule, the keys of a
// task.
class PairTerms {
 public:
  PairTerms(const Call& call, const Molecule& molecule, int64_t first_key, int64_t keys,
            int64_t rows, Scratch& scratch)
      : call_(call),
        molecule_(molecule),
        first_key_(first_key),
        keys_(keys),
        line_(call.groups * W),
        has_table_(call.table.rows && molecule.has_distances),
        has_phi_(call.phi && molecule.has_distances) {
    x_ = scratch.floats(3 * atoms_row(molecule.atoms));
    memory_ = scratch.floats(rows * kFields * padded(keys));
    if (!has_table_) return;
    const int64_t line = atoms_row(molecule.atoms);
    std::memset(x_, 0, 3 * line * sizeof(float));
    for (int64_t i = 0; i < molecule.atoms; ++i) {
      const float* from = call.coordinates + 3 * (molecule.first_atom + molecule.atom[i]);
      for (int axis = 0; axis < 3; ++axis) x_[axis * line + i] = from[axis];
    }
  }

  static int64_t floats(int64_t atoms, int64_t keys, int64_t rows) {
    return 3 * atoms_row(atoms) + rows * kFields * padded(keys);
  }

  // Turns to the queries first … last - 1.
  void locate(int64_t first, int64_t last) {
    first_ = first;
    for (int64_t i = first; i < last; ++i) {
      const PairRow pairs = row(i);
      if (has_table_) {
        measure(call_, molecule_, x_, i, first_key_, first_key_ + keys_, pairs);
        find_cells(call_.table, keys_, pairs);
      }
      if (!call_.hop_rows) continue;
      const uint8_t* hops = hop_row(call_, molecule_, i);
      const int32_t* atom = molecule_.atom + first_key_;
      for (int64_t j = 0; j < keys_; ++j) pairs.hop[j] = call_.hop_start[hops[atom[j]]];
    }
  }

  // Calls visit(j, logit) for every key j of query i, where logit is s [keys, W], Q Kᵀ, with Φ2d,
  // Φ3d and the bias added. Both tables in one pass, which is the usual case.
  template <typename Visit>
  void add(int64_t i, Heads heads, float* s, const Visit& visit) const {
    if (has_phi_) add_phi(i, heads, s);
    if (call_.bias.data) add_bias(i, heads, s);
    if (has_table_ && call_.hop_rows) return add_rows<true, true>(i, heads, s, visit);
    if (has_table_) return add_rows<true, false>(i, heads, s, visit);
    if (call_.hop_rows) return add_rows<false, true>(i, heads, s, visit);
    add_rows<false, false>(i, heads, s, visit);
  }

  bool has_table() const { return has_table_; }
  bool has_phi() const { return has_phi_; }
  const float* x() const { return x_; }

  PairRow row(int64_t i) const {
    const int64_t line = padded(keys_);
    float* at = memory_ + (i - first_) * kFields * line;
    const auto next = [&] { return at += line, at - line; };
    PairRow pairs{next(), next(), next(), {next(), next(), next(), next()}};
    pairs.knot = reinterpret_cast<int32_t*>(next());
    pairs.hop = reinterpret_cast<int32_t*>(next());
    return pairs;
  }

 private:
  static constexpr int64_t kFields = 9;  // of PairRow
  static int64_t padded(int64_t keys) { return (keys + W - 1) / W * W; }

  template <bool Table, bool Hops, typename Visit>
  void add_rows(int64_t i, Heads heads, const float* s, const Visit& visit) const {
    const PairRow pairs = row(i);
    const float* table = call_.table.rows + heads.first;
    const float* hops = call_.hop_rows + heads.first;
    for (int64_t j = 0; j < keys_; ++j) {
      Vec logit = load(s + j * W);
      if (Table) logit += interpolate(table, line_, pairs, j);
      if (Hops) logit += load(hops + pairs.hop[j]);
      visit(j, logit);
    }
  }

  void add_phi(int64_t i, Heads heads, float* s) const {
    for (int64_t j = 0; j < keys_; ++j, s += W) {
      const int64_t row = phi_row(call_, molecule_, i, first_key_ + j);
      const float* phi = call_.phi + row * call_.heads + heads.first;
      add_to(s, gather<Element::kFloat>(phi, 1, heads.count));
    }
  }

  void add_bias(int64_t i, Heads heads, float* s) const {
    for (int64_t j = 0; j < keys_; ++j, s += W) {
      const int64_t at = pair_offset(call_, call_.bias, molecule_, i, first_key_ + j);
      add_to(s, read_pair(call_.bias, at, heads));
    }
  }

  const Call& call_;
  const Molecule& molecule_;
  int64_t first_key_, keys_, line_;
  bool has_table_, has_phi_;
  float *x_, *memory_;  // [3, atoms_row]; [rows, fields, keys↑]
  int64_t first_ = 0;   // query
};

// --- dropout ------------------------------------------------------------------------------------

// 0 or 1/(1 - p) for the pair (i, j) of each head: Philox with key = seed and counter = (j, i,
// head, molecule), kept where it is at least p·2³². Atoms are counted by their place in the
// molecule, so both layouts drop the same weights.
Vec dropout_factor(const Call& call, const Molecule& m, Heads heads, int64_t i, int64_t j) {
  BitsVec head;
  for (int h = 0; h < W; ++h) head[h] = static_cast<uint32_t>(heads.first + h);
  const BitsVec key = BitsVec{} + static_cast<uint32_t>(m.atom[j]);
  const BitsVec query = BitsVec{} + static_cast<uint32_t>(m.atom[i]);
  const BitsVec molecule = BitsVec{} + static_cast<uint32_t>(m.number);
  const uint32_t threshold = static_cast<uint32_t>(call.dropout * 4294967296.0);
  const float kept = static_cast<float>(1 / (1 - call.dropout));
  const BitsVec word = philox(key, query, head, molecule, call.seed);
  return choose((IntVec)(word >= threshold), broadcast(kept), Vec{});
}

// A sum of sums of eight terms: one after the other their rounding was four times PyTorch's.
class Sum {
 public:
  void add(int64_t j, Vec term) {
    some_ += term;
    if (j % 8 != 7) return;
    all_ += some_;
    some_ = Vec{};
  }
  Vec total() const { return all_ + some_; }

 private:
  Vec all_{}, some_{};
};

// --- forward ------------------------------------------------------------------------------------

// Rows of logits that are worked on at a time: as many as keep them in half of a 32 KiB L1, or all.
int64_t rows_at_a_time(const ForwardTask& task) {
  const int64_t keys = task.molecule->atoms, all = task.last - task.first;
  const int64_t rows = 4096 / ((keys ? keys : 1) * W) / kRows * kRows;
  const int64_t some = rows < kRows ? kRows : rows;
  return some < all ? some : all;
}

int64_t forward_scratch(const Call& call, const ForwardTask& task) {
  const int64_t atoms = task.molecule->atoms, rows = rows_at_a_time(task);
  const int64_t groups = task.last_group - task.first_group;
  return PairTerms::floats(atoms, atoms, rows) +
         W * (2 * groups * atoms * call.dim + rows * (2 * call.dim + atoms + 1));
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

float* of_row(const Call& call, float* x, const Molecule& m, Heads heads, int64_t i) {
  return x + (m.first_atom + m.atom[i]) * call.heads + heads.first;
}

void drop(const Call& call, const Molecule& m, Heads heads, int64_t i, float* p) {
  for (int64_t j = 0; j < m.atoms; ++j, p += W) {
    store(p, load(p) * dropout_factor(call, m, heads, i, j));
  }
}

class ForwardKernel {
 public:
  ForwardKernel(const Call& call, const ForwardTask& task, Scratch& scratch)
      : call_(call),
        task_(task),
        m_(*task.molecule),
        rows_(rows_at_a_time(task)),
        terms_(call, m_, 0, m_.atoms, rows_, scratch) {
    const int64_t groups = task.last_group - task.first_group;
    for (Matrix* x : {&k_, &v_}) {
      *x = matrix(scratch.floats(groups * m_.atoms * call.dim * W), call.dim);
    }
    for (Matrix* x : {&q_, &out_}) *x = matrix(scratch.floats(rows_ * call.dim * W), call.dim);
    p_ = matrix(scratch.floats(rows_ * m_.atoms * W), m_.atoms);
    inverse_ = scratch.floats(rows_ * W);
  }

  void run() {
    for (int64_t group = task_.first_group; group < task_.last_group; ++group) {
      const Heads heads = heads_of(call_, group);
      for (const Atoms* x : {&call_.k, &call_.v}) prefetch_atoms(call_, *x, m_, heads, 0, kAhead);
      prefetch_atoms(call_, call_.q, m_, heads, task_.first, task_.first + kAhead);
      read(call_, call_.k, m_, heads, 0, m_.atoms, 1, of_group(k_, group).data);
      read(call_, call_.v, m_, heads, 0, m_.atoms, 1, of_group(v_, group).data);
      if (task_.first == 0) write_zeros(call_, call_.out, m_, heads);
    }
    for (int64_t first = task_.first; first < task_.last; first += rows_) {
      const int64_t last = first + rows_ < task_.last ? first + rows_ : task_.last;
      terms_.locate(first, last);
      for (int64_t group = task_.first_group; group < task_.last_group; ++group) {
        run_rows(group, first, last);
      }
    }
  }

 private:
  Matrix of_group(Matrix x, int64_t group) const {
    return from_row(x, (group - task_.first_group) * m_.atoms);
  }

  void run_rows(int64_t group, int64_t first, int64_t last) {
    const Heads heads = heads_of(call_, group);
    const int64_t rows = last - first, keys = m_.atoms, dim = call_.dim;
    read(call_, call_.q, m_, heads, first, last, call_.scale, q_.data);
    multiply(p_, q_, transposed(of_group(k_, group)), rows, dim, keys, false);
    for (int64_t i = first; i < last; ++i) {
      float* p = p_.at(i - first, 0);
      soften(heads, i, p, inverse_ + (i - first) * W);
      if (call_.dropout > 0) drop(call_, m_, heads, i, p);
    }
    prefetch_atoms(call_, call_.out, m_, heads, first, last);
    multiply(out_, p_, of_group(v_, group), rows, keys, dim, false);
    write(call_, call_.out, m_, heads, first, last, inverse_, W, out_.data);
  }

  // p [keys, W], a row of Q Kᵀ, becomes exp(logit - largest); `inverse` [W] takes 1 / its sum, 0
  // where every key is excluded.
  void soften(Heads heads, int64_t i, float* p, float* inverse) const {
    Vec largest = broadcast(-kInfinity);
    terms_.add(i, heads, p, [&](int64_t j, Vec logit) {
      store(p + j * W, logit);
      largest = larger(largest, logit);
    });
    const IntVec dead = largest == -kInfinity;
    largest = choose(dead, Vec{}, largest);
    Sum sum;
    for (int64_t j = 0; j < m_.atoms; ++j) {
      const Vec weight = exponential(load(p + j * W) - largest);
      store(p + j * W, weight);
      sum.add(j, weight);
    }
    store(inverse, choose(dead, Vec{}, 1 / sum.total()));
    scatter<Element::kFloat>(of_row(call_, call_.largest, m_, heads, i), largest, 1, heads.count);
    scatter<Element::kFloat>(of_row(call_, call_.inverse, m_, heads, i), load(inverse), 1,
                             heads.count);
  }

  const Call& call_;
  const ForwardTask& task_;
  const Molecule& m_;
  int64_t rows_;  // at a time
  PairTerms terms_;
  Matrix k_, v_;    // [groups, atoms, D]
  Matrix q_, out_;  // [rows, D]; q carries the scale
  Matrix p_;        // [rows, keys]
  float* inverse_;  // [rows, W]
};

void forward(const Call& call, const ForwardTask& task, float* memory) {
  Scratch scratch(memory);
  ForwardKernel(call, task, scratch).run();
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

// Gradients of the terms of a query's pairs, given ds [keys, W] of each group.
//
// Where a tile has a whole molecule, the pairs (i, j) and (j, i) are at one place of the radial
// table: j ≤ i take both gradients there, and each row is read and written once.
class PairGradients {
 public:
  PairGradients(const Call& call, const Gradients& gradients, const BackwardTask& task,
                const PairTerms& terms)
      : call_(call),
        gradients_(gradients),
        task_(task),
        m_(*task.molecule),
        terms_(terms),
        wants_u_(terms.has_table() && (task.affine || task.coordinates)) {}

  // A tile of so many rows has both (i, j) and (j, i), and they share their u.
  bool mirrors(int64_t rows) const {
    return rows == m_.atoms && keys() == m_.atoms && !call_.table.affine;
  }

  // Through u, for the first `count` keys.
  void add_radial(int64_t i, Heads heads, const float* ds, int64_t count) const {
    if (terms_.has_table() && task_.radial_rows) add_table(i, heads, ds, count);
    if (wants_u_) add_u(i, heads, ds, count);
  }

  // Everything else.
  void add(int64_t i, Heads heads, const float* ds) const {
    if (task_.hop_rows) add_hops(i, heads, ds);
    if (terms_.has_phi() && gradients_.phi) write_phi(i, heads, ds);
    if (gradients_.bias.data) write_bias(i, heads, ds);
  }

  // Of a row to which all groups have been added; its first `count` keys have dL/du.
  void finish(int64_t i, int64_t count) const {
    if (!wants_u_) return;
    if (task_.affine) add_affine(i);
    if (task_.coordinates) push(i, count);
  }

 private:
  int64_t keys() const { return task_.last - task_.first; }

  void add_table(int64_t i, Heads heads, const float* ds, int64_t count) const {
    const PairRow pairs = terms_.row(i);
    const int64_t line = (task_.last_group - task_.first_group) * W;
    float* rows = task_.radial_rows + heads.first - task_.first_group * W;
    for (int64_t j = 0; j < count; ++j, ds += W) {
      float* knot = rows + pairs.knot[j] * line;
      const Vec x = load(ds);
      add_to(knot, pairs.weight[0][j] * x);
      add_to(knot + line, pairs.weight[1][j] * x);
      add_to(knot + 2 * line, pairs.weight[2][j] * x);
      add_to(knot + 3 * line, pairs.weight[3][j] * x);
    }
  }

  void add_hops(int64_t i, Heads heads, const float* ds) const {
    const PairRow pairs = terms_.row(i);
    for (int64_t j = 0; j < keys(); ++j, ds += W) {
      add_to(task_.hop_rows + heads.first + pairs.hop[j], load(ds));
    }
  }

  void write_phi(int64_t i, Heads heads, const float* ds) const {
    for (int64_t j = task_.first; j < task_.last; ++j, ds += W) {
      float* row = gradients_.phi + phi_row(call_, m_, i, j) * call_.heads + heads.first;
      scatter<Element::kFloat>(row, load(ds), 1, heads.count);
    }
  }

  void write_bias(int64_t i, Heads heads, const float* ds) const {
    for (int64_t j = task_.first; j < task_.last; ++j, ds += W) {
      write_pair(gradients_.bias, pair_offset(call_, gradients_.bias, m_, i, j), heads, load(ds));
    }
  }

  // dL/du of a pair is a sum over heads; it goes on to γ, β and, through r, to both atoms. Takes
  // the place of u, which is not needed any more.
  void add_u(int64_t i, Heads heads, const float* ds, int64_t count) const {
    const PairRow pairs = terms_.row(i);
    const float* slopes = call_.table.slope_rows + heads.first;
    const int64_t line = call_.groups * W;
    const bool first = heads.first == task_.first_group * W;
    for (int64_t j = 0; j < count; j += W) {
      Vec terms[W] = {};
      for (int64_t lane = 0; lane < W && j + lane < count; ++lane) {
        terms[lane] = load(ds + (j + lane) * W) * interpolate(slopes, line, pairs, j + lane);
      }
      const Vec du = sum_lanes(terms);
      store(pairs.u + j, first ? du : load(pairs.u + j) + du);
    }
  }

  void add_affine(int64_t i) const {
    const PairRow pairs = terms_.row(i);
    for (int64_t j = 0; j < keys(); ++j) {
      for (int side = 0; side < (call_.atom_types ? 2 : 1); ++side) {
        float* to = task_.affine + 2 * type_of(call_, m_, i, task_.first + j, side);
        to[0] += pairs.u[j] * pairs.distance[j];
        to[1] += pairs.u[j];
      }
    }
  }

  // dL/du becomes dL/dr / r, 0 where r is and behind the last of them; then the forces on i and on
  // the keys.
  void push(int64_t i, int64_t count) const {
    const PairRow pairs = terms_.row(i);
    const int64_t line = atoms_row(m_.atoms);
    float* du = pairs.u;
    for (int64_t j = 0; j < count; ++j) {
      const float gamma = call_.table.affine ? pairs.gamma[j] : 1.0f, r = pairs.distance[j];
      du[j] = r > 0 ? du[j] * gamma / r : 0.0f;
    }
    for (int64_t j = count; j % W; ++j) du[j] = 0;
    Vec sums[W] = {};
    for (int axis = 0; axis < 3; ++axis) {
      const float* x = terms_.x() + axis * line;
      float* to = task_.coordinates + axis * line + task_.first;
      for (int64_t j = 0; j < count; j += W) {
        const Vec force = load(du + j) * (x[i] - load(x + task_.first + j));
        add_to(to + j, -force);
        sums[axis] += force;
      }
    }
    const Vec sum = sum_lanes(sums);
    for (int axis = 0; axis < 3; ++axis) task_.coordinates[axis * line + i] += sum[axis];
  }

  const Call& call_;
  const Gradients& gradients_;
  const BackwardTask& task_;
  const Molecule& m_;
  const PairTerms& terms_;
  bool wants_u_;
};

// Σ_d a·b, for rows of D vectors.
Vec dot(const float* a, const float* b, int64_t count) {
  Vec sum{};
  for (int64_t d = 0; d < count; ++d) sum += load(a + d * W) * load(b + d * W);
  return sum;
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
        terms_(call, m_, task.first, keys_, rows_, scratch),
        pairs_(call, gradients, task, terms_) {
    const int64_t dim = call.dim, groups = task.last_group - task.first_group;
    for (Matrix* x : {&k_, &v_}) *x = matrix(scratch.floats(groups * keys_ * dim * W), dim);
    dk_ = sums(gradients.k, scratch), dv_ = sums(gradients.v, scratch);
    for (Matrix* x : {&q_, &grad_, &dq_}) *x = matrix(scratch.floats(rows_ * dim * W), dim);
    for (Matrix* x : {&p_, &ds_}) *x = matrix(scratch.floats(rows_ * keys_ * W), keys_);
    row_ = scratch.floats(row_vectors(call, keys_) * W);
  }

  static int64_t scratch_floats(const Call& call, const Gradients& gradients,
                                const BackwardTask& task) {
    const int64_t atoms = task.molecule->atoms, keys = task.last - task.first;
    const int64_t rows = tile_rows(atoms, keys), groups = task.last_group - task.first_group;
    int64_t of_keys = 2;
    for (const Atoms* x : {&gradients.k, &gradients.v}) {
      of_keys += !takes_lanes(call, *x, *task.molecule);
    }
    return PairTerms::floats(atoms, keys, rows) +
           W * ((of_keys * groups * keys + 3 * rows) * call.dim + 2 * rows * keys +
                row_vectors(call, keys));
  }

  void run() {
    for (int64_t group = task_.first_group; group < task_.last_group; ++group) {
      const Heads heads = heads_of(call_, group);
      for (const Atoms* x : {&call_.k, &call_.v}) {
        prefetch_atoms(call_, *x, m_, heads, task_.first, task_.first + kAhead);
      }
      for (const Atoms* x : {&call_.q, &gradients_.out}) {
        prefetch_atoms(call_, *x, m_, heads, 0, kAhead);
      }
      read(call_, call_.k, m_, heads, task_.first, task_.last, 1, of_group(k_, group).data);
      read(call_, call_.v, m_, heads, task_.first, task_.last, 1, of_group(v_, group).data);
    }
    for (int64_t first = 0; first < m_.atoms; first += rows_) {
      const int64_t last = first + rows_ < m_.atoms ? first + rows_ : m_.atoms;
      terms_.locate(first, last);
      for (int64_t group = task_.first_group; group < task_.last_group; ++group) {
        run_tile(group, first, last);
      }
      const bool mirrored = pairs_.mirrors(last - first);
      for (int64_t i = first; i < last; ++i) pairs_.finish(i, mirrored ? i + 1 : keys_);
    }
    for (int64_t group = task_.first_group; group < task_.last_group; ++group) write_keys(group);
  }

 private:
  static int64_t row_vectors(const Call& call, int64_t keys) {
    return keys > call.dim ? keys : call.dim;
  }

  Matrix of_group(Matrix x, int64_t group) const {
    return from_row(x, (group - task_.first_group) * keys_);
  }

  // Where dL/dk or dL/dv is added up: x itself where that can be, in memory of its own elsewhere.
  Matrix sums(const Atoms& x, Scratch& scratch) const {
    const int64_t groups = task_.last_group - task_.first_group;
    if (!takes_lanes(call_, x, m_)) {
      return matrix(scratch.floats(groups * keys_ * call_.dim * W), call_.dim);
    }
    float* data = static_cast<float*>(x.data) + molecule_offset(call_, x, m_);
    return {data + task_.first * x.atom, x.atom, W};
  }

  Matrix of_group(Matrix sums, const Atoms& x, int64_t group) const {
    if (!takes_lanes(call_, x, m_)) return of_group(sums, group);
    return from_column(sums, group * call_.dim);
  }

  void run_tile(int64_t group, int64_t first, int64_t last) {
    const Heads heads = heads_of(call_, group);
    const Matrix k = of_group(k_, group), v = of_group(v_, group);
    const int64_t rows = last - first, dim = call_.dim;
    read(call_, call_.q, m_, heads, first, last, call_.scale, q_.data);
    read(call_, gradients_.out, m_, heads, first, last, 1, grad_.data);
    if (task_.q) read(call_, call_.out, m_, heads, first, last, 1, dq_.data);
    if (first == 0) {  // written to three products from here
      prefetch_atoms(call_, gradients_.k, m_, heads, task_.first, task_.last);
      prefetch_atoms(call_, gradients_.v, m_, heads, task_.first, task_.last);
    }
    multiply(p_, q_, transposed(k), rows, dim, keys_, false);
    multiply(ds_, grad_, transposed(v), rows, dim, keys_, false);
    const bool mirrored = pairs_.mirrors(rows);
    for (int64_t i = first; i < last; ++i) {
      run_row(heads, i, i - first);
      if (!mirrored) pairs_.add_radial(i, heads, ds_.at(i - first, 0), keys_);
    }
    if (mirrored) add_mirrored(heads);
    const Matrix dk = of_group(dk_, gradients_.k, group), dv = of_group(dv_, gradients_.v, group);
    multiply(dv, transposed(p_), grad_, keys_, rows, dim, first > 0);
    multiply(dk, transposed(ds_), q_, keys_, rows, dim, first > 0);
    Matrix dq = dq_;
    if (task_.q) {
      const int64_t before = (group - task_.first_group) * m_.atoms + first;
      dq = matrix(task_.q + before * dim * W, dim);
    }
    if (!task_.q) prefetch_atoms(call_, gradients_.q, m_, heads, first, last);
    multiply(dq, ds_, k, rows, keys_, dim, false);
    if (!task_.q) write(call_, gradients_.q, m_, heads, first, last, call_.scale, dq_.data);
  }

  // A row of Q Kᵀ becomes weights p, one of g = dL/dout · Vᵀ becomes dL/ds = p·(g - Σ p·g). The sum
  // is taken over the very p and g that are used, and divided by Σ p, which rounding keeps from 1,
  // so a row of dL/ds adds up to 0 as it should; a task that has not all keys takes the same number
  // from the result.
  void run_row(Heads heads, int64_t i, int64_t row) {
    float *p = p_.at(row, 0), *ds = ds_.at(row, 0);
    if (call_.dropout > 0) {
      for (int64_t j = 0; j < keys_; ++j) {
        store(row_ + j * W, dropout_factor(call_, m_, heads, i, task_.first + j));
      }
      multiply_row(ds, row_, keys_);
    }
    const Vec largest =
        gather<Element::kFloat>(of_row(call_, call_.largest, m_, heads, i), 1, heads.count);
    const Vec inverse =
        gather<Element::kFloat>(of_row(call_, call_.inverse, m_, heads, i), 1, heads.count);
    Sum sum, sum_of_g;
    terms_.add(i, heads, p, [&](int64_t j, Vec logit) {
      const Vec weight = exponential(logit - largest) * inverse;
      store(p + j * W, weight);
      sum.add(j, weight);
      sum_of_g.add(j, weight * load(ds + j * W));
    });
    const Vec one = choose(inverse == 0, broadcast(1), sum.total());
    const Vec mean =
        task_.q ? dot(grad_.at(row, 0), dq_.at(row, 0), call_.dim) : sum_of_g.total() / one;
    for (int64_t j = 0; j < keys_; ++j) {
      store(ds + j * W, load(p + j * W) * (load(ds + j * W) - mean));
    }
    if (call_.dropout > 0) multiply_row(p, row_, keys_);
    pairs_.add(i, heads, ds);
  }

  // The pairs (i, j) and (j, i) together.
  void add_mirrored(Heads heads) {
    for (int64_t i = 0; i < m_.atoms; ++i) {
      for (int64_t j = 0; j < i; ++j) store(row_ + j * W, load(ds_.at(i, j)) + load(ds_.at(j, i)));
      store(row_ + i * W, load(ds_.at(i, i)));
      pairs_.add_radial(i, heads, row_, i + 1);
    }
  }

  void write_keys(int64_t group) {
    const Heads heads = heads_of(call_, group);
    write_sums(gradients_.k, dk_, group);
    write_sums(gradients_.v, dv_, group);
    if (task_.first > 0) return;
    for (const Atoms* x : {&gradients_.q, &gradients_.k, &gradients_.v}) {
      write_zeros(call_, *x, m_, heads);
    }
  }

  void write_sums(const Atoms& x, Matrix sums, int64_t group) {
    const Heads heads = heads_of(call_, group);
    if (takes_lanes(call_, x, m_)) {
      return turn(call_, x, m_, heads, task_.first, task_.last, row_);
    }
    prefetch_atoms(call_, x, m_, heads, task_.first, task_.last);
    write(call_, x, m_, heads, task_.first, task_.last, 1, of_group(sums, group).data);
  }

  const Call& call_;
  const Gradients& gradients_;
  const BackwardTask& task_;
  const Molecule& m_;
  int64_t keys_, rows_;  // of the task, of a tile
  PairTerms terms_;
  PairGradients pairs_;
  Matrix k_, v_, dk_, dv_;  // [groups, keys, D]
  Matrix q_, grad_, dq_;    // [rows, D]; q carries the scale; dq holds the result's rows at first
  Matrix p_, ds_;           // [rows, keys]
  float* row_;  // [keys] of dropout factors or of mirrored gradients' sums, or [D] of an atom
};

int64_t backward_scratch(const Call& call, const Gradients& gradients, const BackwardTask& task) {
  return BackwardKernel::scratch_floats(call, gradients, task);
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

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const Kernels attention_kernels;
const Kernels attention_kernels{kCapability,          W,         forward,         backward,
                                write_query_gradient, atoms_row, forward_scratch, backward_scratch};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
