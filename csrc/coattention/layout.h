// Reads and writes atoms: from the tensors' layouts to [atom, d, head] and back.

#pragma once

#include "../simd.h"
#include "kernel.h"
#include "matrix.h"

namespace collamo::cpu {
namespace {

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

// Reads `count` elements, `stride` apart, and nothing else; the other lanes are 0.
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

// The heads of one group.
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

// The processor does not predict the next atom: its heads are a row of all heads away. Inlining is
// forced, because gcc believes that a function that only prefetches has no effect and drops its
// calls.
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

// Prefetches atoms that are read or written soon.
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

// Whether an atom's elements can be moved as whole vectors.
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

// to [W/2, W] = the elements from[W/2 … W - 1] alone, with half as many exchanges.
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
  // Where the width is not a multiple of W, the last square overlaps the one before.
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
    if (i + kAhead < molecule.atoms) {  // in the next call too
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

// x[atom, heads] = factor · from [D, W]. Squares overlap: writing elements twice is several times
// faster than writing them one by one.
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

// Whether x itself has room for sums [D, W] of every group, atom after atom, until `turn` gives
// them their layout.
bool takes_lanes(const Call& call, const Atoms& x, const Molecule& m) {
  const bool consecutive = m.atoms == 0 || m.atom[m.atoms - 1] == m.atoms - 1;
  return x.type == Element::kFloat && x.dim == 1 && x.head == call.dim && call.heads % W == 0 &&
         consecutive;
}

// Turns the sums [D, W] that lie in x into x[atoms, heads]; `copy` has room for one atom.
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

// Zeros for the atoms of padding.
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

}  // namespace
}  // namespace collamo::cpu
