// The backward pass of one task.

#pragma once

#include "kernel.h"
#include "layout.h"
#include "matrix.h"
#include "pair_gradients.h"
#include "pair_terms.h"
#include "softmax.h"

namespace collamo::cpu {
namespace {

// Pairs in a tile: their weights and dL/ds stay in L2, and a typical molecule is one tile.
constexpr int64_t kPairsOfTile = 1600;

// Queries in a tile, which has all keys of the task.
int64_t tile_rows(int64_t atoms, int64_t keys) {
  if (atoms * keys <= kPairsOfTile) return atoms;
  const int64_t rows = kPairsOfTile / keys / kRows * kRows;
  return rows < kRows ? kRows : rows;
}

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
    int64_t key_matrices = 2;
    for (const Atoms* x : {&gradients.k, &gradients.v}) {
      key_matrices += !takes_lanes(call, *x, *task.molecule);
    }
    return PairTerms::floats(atoms, keys, rows) +
           W * ((key_matrices * groups * keys + 3 * rows) * call.dim + 2 * rows * keys +
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
      read(call_, call_.k, m_, heads, task_.first, task_.last, 1, slice(k_, group).data);
      read(call_, call_.v, m_, heads, task_.first, task_.last, 1, slice(v_, group).data);
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

  Matrix slice(Matrix x, int64_t group) const {
    return from_row(x, (group - task_.first_group) * keys_);
  }

  // Where dL/dk or dL/dv is summed: in x itself if it has the room, else in scratch memory.
  Matrix sums(const Atoms& x, Scratch& scratch) const {
    const int64_t groups = task_.last_group - task_.first_group;
    if (!takes_lanes(call_, x, m_)) {
      return matrix(scratch.floats(groups * keys_ * call_.dim * W), call_.dim);
    }
    float* data = static_cast<float*>(x.data) + molecule_offset(call_, x, m_);
    return {data + task_.first * x.atom, x.atom, W};
  }

  Matrix slice(Matrix sums, const Atoms& x, int64_t group) const {
    if (!takes_lanes(call_, x, m_)) return slice(sums, group);
    return from_column(sums, group * call_.dim);
  }

  void run_tile(int64_t group, int64_t first, int64_t last) {
    const Heads heads = heads_of(call_, group);
    const Matrix k = slice(k_, group), v = slice(v_, group);
    const int64_t rows = last - first, dim = call_.dim;
    read(call_, call_.q, m_, heads, first, last, call_.scale, q_.data);
    read(call_, gradients_.out, m_, heads, first, last, 1, grad_.data);
    if (task_.q) read(call_, call_.out, m_, heads, first, last, 1, dq_.data);
    if (first == 0) {  // they are written three products later
      prefetch_atoms(call_, gradients_.k, m_, heads, task_.first, task_.last);
      prefetch_atoms(call_, gradients_.v, m_, heads, task_.first, task_.last);
    }
    multiply(p_, q_, transposed(k), rows, dim, keys_, false);
    multiply(ds_, grad_, transposed(v), rows, dim, keys_, false);
    const bool mirrored = pairs_.mirrors(rows);
    sink_ = Sum{};
    for (int64_t i = first; i < last; ++i) {
      run_row(heads, i, i - first);
      if (!mirrored) pairs_.add_radial(i, heads, ds_.at(i - first, 0), keys_);
    }
    if (task_.sink) add_to(task_.sink + heads.first, sink_.total());
    if (mirrored) add_mirrored(heads);
    const Matrix dk = slice(dk_, gradients_.k, group), dv = slice(dv_, gradients_.v, group);
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

  // A row of Q Kᵀ becomes the weights p, one of g = dL/dout · Vᵀ becomes dL/ds = p·(g - Σ p·g). The
  // sum uses these very p and g and is divided by Σ p, which rounding keeps from 1, so that a row
  // of dL/ds adds up to 0 as it should. A task without all the keys gets the same number as Σ_d of
  // dL/dout · out. A sink is one more key, with g = 0.
  void run_row(Heads heads, int64_t i, int64_t row) {
    float *p = p_.at(row, 0), *ds = ds_.at(row, 0);
    if (call_.dropout > 0) {
      for (int64_t j = 0; j < keys_; ++j) {
        store(row_ + j * W, dropout_factor(call_, m_, heads, i, task_.first + j));
      }
      multiply_row(ds, row_, keys_);
    }
    const Vec row_max =
        gather<Element::kFloat>(row_statistic(call_, call_.row_max, m_, heads, i), 1, heads.count);
    const Vec inverse_sum = gather<Element::kFloat>(
        row_statistic(call_, call_.inverse_sum, m_, heads, i), 1, heads.count);
    Sum sum, weighted_sum;
    terms_.add(i, heads, p, [&](int64_t j, Vec logit) {
      const Vec weight = exponential(logit - row_max) * inverse_sum;
      store(p + j * W, weight);
      sum.add(j, weight);
      weighted_sum.add(j, weight * load(ds + j * W));
    });
    const IntVec dead = inverse_sum == 0;
    Vec sink{};
    if (call_.sink) sink = choose(dead, sink, sink_term(call_, heads, row_max) * inverse_sum);
    const Vec one = choose(dead, broadcast(1), sum.total() + sink);
    const Vec mean =
        task_.q ? dot(grad_.at(row, 0), dq_.at(row, 0), call_.dim) : weighted_sum.total() / one;
    if (task_.sink) sink_.add(row, -sink * mean);
    for (int64_t j = 0; j < keys_; ++j) {
      store(ds + j * W, load(p + j * W) * (load(ds + j * W) - mean));
    }
    if (call_.dropout > 0) multiply_row(p, row_, keys_);
    pairs_.add(i, heads, ds);
  }

  // Adds the pairs (i, j) and (j, i) together.
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
    write(call_, x, m_, heads, task_.first, task_.last, 1, slice(sums, group).data);
  }

  const Call& call_;
  const Gradients& gradients_;
  const BackwardTask& task_;
  const Molecule& m_;
  int64_t keys_, rows_;  // in the task; in a tile
  PairTerms terms_;
  PairGradients pairs_;
  Matrix k_, v_, dk_, dv_;  // [groups, keys, D]
  Matrix q_, grad_, dq_;    // [rows, D]; q is scaled; dq holds rows of the result at first
  Matrix p_, ds_;           // [rows, keys]
  float* row_;  // [keys]: dropout factors or sums of mirrored gradients; or [D]: an atom
  Sum sink_;    // dL/dsink of a tile's rows
};

}  // namespace
}  // namespace collamo::cpu
