// Gradients of the terms of the logits that depend on pairs of atoms.

#pragma once

#include "kernel.h"
#include "pair_terms.h"

namespace collamo::cpu {
namespace {

// Adds up the gradients of a query's pairs from ds [keys, W] of each group.
//
// Where a tile has a whole molecule, the pairs (i, j) and (j, i) share their place in the radial
// table: j ≤ i takes both gradients there, and each row is read and written once.
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

  // Whether a tile of so many rows has both (i, j) and (j, i), with the same u.
  bool mirrors(int64_t rows) const {
    return rows == m_.atoms && keys() == m_.atoms && !call_.table.affine;
  }

  // The gradients through u, for the first `count` keys.
  void add_radial(int64_t i, Heads heads, const float* ds, int64_t count) const {
    if (terms_.has_table() && task_.radial_rows) add_table(i, heads, ds, count);
    if (wants_u_) add_u(i, heads, ds, count);
  }

  // All other gradients.
  void add(int64_t i, Heads heads, const float* ds) const {
    if (task_.hop_rows) add_hops(i, heads, ds);
    if (terms_.has_phi() && gradients_.phi) write_phi(i, heads, ds);
    if (gradients_.bias.data) write_bias(i, heads, ds);
  }

  // Ends a row to which all groups have been added; its first `count` keys have dL/du.
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

  // dL/du of a pair is a sum over heads, for γ, β and, through r, both atoms. It replaces u, which
  // is no longer needed.
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

  // dL/du becomes dL/dr / r, which is 0 where r is 0 and behind the last key; then the forces on i
  // and on the keys.
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

}  // namespace
}  // namespace collamo::cpu
