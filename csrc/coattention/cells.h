// Distances between atoms, and their cells in the radial table.

#pragma once

#include "../simd.h"
#include "kernel.h"
#include "matrix.h"

namespace collamo::cpu {
namespace {

// Where a row of pairs (one query, all keys of a task) reads the tables. Fields are whole vectors;
// nothing behind the last key is read as data.
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

// The line of coordinates [3, atoms_row], so long that a whole vector may start at any atom.
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

// block is a power of two, so u/block and its remainder are exact. NaN stays NaN.
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
    // Unsigned, because anything may stand behind the last key.
    const BitsVec knot = (load_as<BitsVec>(row.knot + j) + (BitsVec)cell) * 2;
    std::memcpy(row.knot + j, &knot, sizeof knot);
  }
}

// The table's value at pair j, for all heads of the group.
Vec interpolate(const float* rows, int64_t line, const PairRow& row, int64_t j) {
  const float* knot = rows + row.knot[j] * line;
  Vec phi = row.weight[0][j] * load(knot);
  phi += row.weight[1][j] * load(knot + line);
  phi += row.weight[2][j] * load(knot + 2 * line);
  return phi + row.weight[3][j] * load(knot + 3 * line);
}

}  // namespace
}  // namespace collamo::cpu
