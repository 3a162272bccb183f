// A row of the softmax, as both passes need it.

#pragma once

#include "kernel.h"
#include "layout.h"

namespace collamo::cpu {
namespace {

// The heads of the group in row_max or inverse_sum, at query i.
float* row_statistic(const Call& call, float* x, const Molecule& m, Heads heads, int64_t i) {
  return x + (m.first_atom + m.atom[i]) * call.heads + heads.first;
}

// What the sink adds to Σ exp(logit - row_max). Dropout leaves it alone: it carries no value.
// Inlined it cost every key two instructions: the constants of two exponentials do not fit the
// registers.
__attribute__((noinline)) Vec sink_term(const Call& call, Heads heads, Vec row_max) {
  return exponential(load(call.sink + heads.first) - row_max);
}

// 0 or 1/(1 - p) for the pair (i, j) of each head: Philox with key = seed and counter = (j, i,
// head, molecule), kept where it is at least p·2³². Atoms are numbered by their place in the
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

// A sum of sums of eight terms. Adding terms one by one rounded four times as much as PyTorch.
class Sum {
 public:
  void add(int64_t j, Vec term) {
    eight_ += term;
    if (j % 8 != 7) return;
    eights_ += eight_;
    eight_ = Vec{};
  }
  Vec total() const { return eights_ + eight_; }

 private:
  Vec eights_{}, eight_{};
};

}  // namespace
}  // namespace collamo::cpu
