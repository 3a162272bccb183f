// The terms of the logits that depend on pairs of atoms.

#pragma once

#include "cells.h"
#include "kernel.h"
#include "layout.h"
#include "scratch.h"

namespace collamo::cpu {
namespace {

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

// The terms between the queries of a tile and the keys of a task.
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

  // Moves on to the queries first … last - 1.
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
  // Φ3d and the bias added. The usual case is both tables, in one pass.
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

}  // namespace
}  // namespace collamo::cpu
