#pragma once

#include <cstdint>

#include "../atoms.h"

namespace collamo::cpu {

// A dense bias or its gradient: [B, H, N, N], or packed [H, P].
struct Pairs {
  void* data;  // nullptr: none
  Element type;
  int64_t molecule, head, query, key;
};

// The real atoms of one molecule. Kernels number them 0 … atoms - 1 and never look at the others.
struct Molecule {
  int64_t number;       // b
  int64_t size;         // N, or, packed, its own number of atoms
  int64_t first_atom;   // b·N, or its offset in the packed batch
  int64_t first_pair;   // b·N², or its offset in the packed batch
  int64_t first_phi;    // its first row of phi
  const int32_t* atom;  // positions of the real atoms inside the molecule
  int64_t atoms;
  bool has_distances;
};

// Φ3d as a cubic Hermite table over u: block m covers [(start + m)·block, (start + m + 1)·block]
// with cells[m] equal cells of width[m] Å, the first of which starts at knot first[m].
struct RadialTable {
  const float* rows;        // [G, 2, H↑]: value and slope; nullptr: no table
  const float* slope_rows;  // the same for dΦ3d/du, needed by gradients of u; or nullptr
  int64_t knots;
  const int32_t* first;
  const float* cells;
  const float* width;
  int64_t blocks;
  float start, per_block;  // per_block = 1 / block
  const float* affine;     // [types, 2]: γ and β, or nullptr: u = r
  int64_t types;
};

// What all tasks of a call share. A group has as many heads as a vector has lanes; H↑ counts the
// lanes of all groups.
struct Call {
  Atoms q, k, v, out;
  bool packed;
  int64_t heads, dim, groups;
  float scale;
  float* row_max;            // [atoms of the batch, H]: a row's largest logit; 0 without a key
  float* inverse_sum;        // [atoms of the batch, H]: 1 / Σ exp(logit - row_max); likewise
  const uint8_t* hops;       // nullptr: no Φ2d
  const float* hop_rows;     // [S, H↑]
  int64_t hop_buckets;       // S
  const int32_t* hop_start;  // [256]: where in hop_rows the row of a number of hops starts
  RadialTable table;         // either a table …
  const float* phi;          // … or [rows, H], one row per pair
  bool phi_of_all_pairs;     // it has a row for every pair, not only for real ones
  const float* coordinates;  // [atoms of the batch, 3]
  const int32_t* pair_types;
  const int32_t* atom_types;
  Pairs bias;
  const float* sink;  // [H↑]: one more logit of every row, whose value is zero; nullptr: none
  double dropout;
  uint64_t seed;
};

// Where the gradients go. Those of tables are private to a task, and summed later in a fixed order.
struct Gradients {
  Atoms out, q, k, v;  // out: the incoming gradient
  Pairs bias;
  float* phi;
};

// The groups first_group … last_group - 1 of a molecule, for some of its rows or keys.
struct ForwardTask {
  const Molecule* molecule;
  int64_t first_group, last_group;
  int64_t first, last;  // its rows
};

struct BackwardTask {
  const Molecule* molecule;
  int64_t first_group, last_group;
  int64_t first, last;  // its keys
  float* hop_rows;      // [S, H↑]; the task adds to the heads of its groups
  float* radial_rows;   // [G, 2, heads of its groups↑], the task's own
  float* affine;        // [types, 2], or nullptr
  float* coordinates;   // [3, atoms_row], the task's own, or nullptr
  float* sink;  // [H↑]; the task adds to the heads of its groups; nullptr: not asked, or not by it
  float* q;     // [groups, atoms, D, width]: dq of these keys; nullptr: the task has all keys
};

// The same source compiled for one instruction set.
struct Kernels {
  const char* name;
  int64_t width;
  void (*forward)(const Call&, const ForwardTask&, float* scratch);
  void (*backward)(const Call&, const Gradients&, const BackwardTask&, float* scratch);
  // Adds up the partial dq of a group, in order, and writes the sum.
  void (*write_query_gradient)(const Call&, const Gradients&, const Molecule&, int64_t group,
                               float* const* parts, int64_t count);
  // Floats in a line of coordinates.
  int64_t (*atoms_row)(int64_t atoms);
  // Floats of scratch memory that a task needs.
  int64_t (*forward_scratch)(const Call&, const ForwardTask&);
  int64_t (*backward_scratch)(const Call&, const Gradients&, const BackwardTask&);
};

}  // namespace collamo::cpu
