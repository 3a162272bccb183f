// The forward pass of one task.

#pragma once

#include "kernel.h"
#include "layout.h"
#include "matrix.h"
#include "pair_terms.h"
#include "softmax.h"

namespace collamo::cpu {
namespace {

constexpr float kInfinity = __builtin_inff();

// Rows of logits to work on at a time: as many as fit half of a 32 KiB L1, or all.
int64_t rows_at_a_time(const ForwardTask& task) {
  const int64_t keys = task.molecule->atoms, queries = task.last - task.first;
  const int64_t cached = 4096 / ((keys ? keys : 1) * W) / kRows * kRows;
  const int64_t rows = cached < kRows ? kRows : cached;
  return rows < queries ? rows : queries;
}

int64_t forward_scratch(const Call& call, const ForwardTask& task) {
  const int64_t atoms = task.molecule->atoms, rows = rows_at_a_time(task);
  const int64_t groups = task.last_group - task.first_group;
  return PairTerms::floats(atoms, atoms, rows) +
         W * (2 * groups * atoms * call.dim + rows * (2 * call.dim + atoms + 1));
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
    inverse_sums_ = scratch.floats(rows_ * W);
  }

  void run() {
    for (int64_t group = task_.first_group; group < task_.last_group; ++group) {
      const Heads heads = heads_of(call_, group);
      for (const Atoms* x : {&call_.k, &call_.v}) prefetch_atoms(call_, *x, m_, heads, 0, kAhead);
      prefetch_atoms(call_, call_.q, m_, heads, task_.first, task_.first + kAhead);
      read(call_, call_.k, m_, heads, 0, m_.atoms, 1, slice(k_, group).data);
      read(call_, call_.v, m_, heads, 0, m_.atoms, 1, slice(v_, group).data);
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
  Matrix slice(Matrix x, int64_t group) const {
    return from_row(x, (group - task_.first_group) * m_.atoms);
  }

  void run_rows(int64_t group, int64_t first, int64_t last) {
    const Heads heads = heads_of(call_, group);
    const int64_t rows = last - first, keys = m_.atoms, dim = call_.dim;
    read(call_, call_.q, m_, heads, first, last, call_.scale, q_.data);
    multiply(p_, q_, transposed(slice(k_, group)), rows, dim, keys, false);
    for (int64_t i = first; i < last; ++i) {
      float* p = p_.at(i - first, 0);
      soften(heads, i, p, inverse_sums_ + (i - first) * W);
      if (call_.dropout > 0) drop(call_, m_, heads, i, p);
    }
    prefetch_atoms(call_, call_.out, m_, heads, first, last);
    multiply(out_, p_, slice(v_, group), rows, keys, dim, false);
    write(call_, call_.out, m_, heads, first, last, inverse_sums_, W, out_.data);
  }

  // p [keys, W], a row of Q Kᵀ, becomes exp(logit - row_max); `inverse_sum` [W] takes 1 / its sum,
  // 0 where every key is excluded.
  void soften(Heads heads, int64_t i, float* p, float* inverse_sum) const {
    Vec row_max = broadcast(-kInfinity);
    terms_.add(i, heads, p, [&](int64_t j, Vec logit) {
      store(p + j * W, logit);
      row_max = larger(row_max, logit);
    });
    const IntVec dead = row_max == -kInfinity;
    if (call_.sink) row_max = larger(row_max, load(call_.sink + heads.first));
    row_max = choose(dead, Vec{}, row_max);
    Sum sum;
    for (int64_t j = 0; j < m_.atoms; ++j) {
      const Vec weight = exponential(load(p + j * W) - row_max);
      store(p + j * W, weight);
      sum.add(j, weight);
    }
    Vec total = sum.total();
    if (call_.sink) total += sink_term(call_, heads, row_max);
    store(inverse_sum, choose(dead, Vec{}, 1 / total));
    scatter<Element::kFloat>(row_statistic(call_, call_.row_max, m_, heads, i), row_max, 1,
                             heads.count);
    scatter<Element::kFloat>(row_statistic(call_, call_.inverse_sum, m_, heads, i),
                             load(inverse_sum), 1, heads.count);
  }

  const Call& call_;
  const ForwardTask& task_;
  const Molecule& m_;
  int64_t rows_;  // at a time
  PairTerms terms_;
  Matrix k_, v_;         // [groups, atoms, D]
  Matrix q_, out_;       // [rows, D]; q carries the scale
  Matrix p_;             // [rows, keys]
  float* inverse_sums_;  // [rows, W]
};

}  // namespace
}  // namespace collamo::cpu
