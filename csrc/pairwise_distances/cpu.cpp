// Distances between all atoms of each molecule, and their gradient.
//
// Direct differences, because |x|² + |y|² - 2xy cancels. A row of distances, or the gradient of an
// atom, belongs to one task, so that sums have one order.
// Loops are vectorized only under -fno-math-errno and -fno-trapping-math, which setup.py gives.

#include "cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../clones.h"

namespace collamo::cpu {
namespace {

constexpr int64_t kPairsPerTask = 32768;
constexpr int kLanes = 16;  // separate sums, which can be a vector
constexpr int kRows = 16;   // atoms whose columns of `grad` are read together

// The atoms of one molecule, coordinate by coordinate; padding is at the origin.
struct Atoms {
  std::vector<float> x, y, z;
  std::vector<uint8_t> real;

  void load(const Positions& positions, int64_t molecule) {
    load(positions.coordinates, positions.valid, positions.atoms * molecule, positions.atoms);
  }

  // n atoms from number `first` on.
  void load(const float* coordinates, const uint8_t* valid, int64_t first, int64_t n) {
    const float* from = coordinates + 3 * first;
    x.resize(n), y.resize(n), z.resize(n), real.assign(n, 1);
    if (valid) std::copy_n(valid + first, n, real.begin());
    for (int64_t i = 0; i < n; ++i) {
      x[i] = real[i] ? from[3 * i] : 0;
      y[i] = real[i] ? from[3 * i + 1] : 0;
      z[i] = real[i] ? from[3 * i + 2] : 0;
    }
  }
};

COLLAMO_ALSO_AVX2
void measure(const Atoms& atoms, int64_t i, int64_t n, float* row) {
  const float *x = atoms.x.data(), *y = atoms.y.data(), *z = atoms.z.data();
  const uint8_t* real = atoms.real.data();
  const float xi = x[i], yi = y[i], zi = z[i];
  for (int64_t j = 0; j < n; ++j) {
    const float dx = xi - x[j], dy = yi - y[j], dz = zi - z[j];
    const float distance = std::sqrt(dx * dx + dy * dy + dz * dz);
    row[j] = real[j] ? distance : 0;
  }
}

// Σ_j of (grad[i][j] + grad[j][i])·(x_i - x_j)/r_ij. across [n]: grad[j][i].
COLLAMO_ALSO_AVX2
void pull(const Atoms& atoms, int64_t i, int64_t n, const float* along, const float* across,
          float* force) {
  const float *x = atoms.x.data(), *y = atoms.y.data(), *z = atoms.z.data();
  const uint8_t* real = atoms.real.data();
  const float xi = x[i], yi = y[i], zi = z[i];
  float sum_x[kLanes] = {}, sum_y[kLanes] = {}, sum_z[kLanes] = {};
  const auto add = [&](int64_t j, int lane) {
    const float dx = xi - x[j], dy = yi - y[j], dz = zi - z[j];
    const float squared = dx * dx + dy * dy + dz * dz;
    const bool apart = squared > 0 && real[j];
    const float weight = apart ? (along[j] + across[j]) / std::sqrt(apart ? squared : 1) : 0;
    sum_x[lane] += weight * dx;
    sum_y[lane] += weight * dy;
    sum_z[lane] += weight * dz;
  };
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(j + lane, lane);
  }
  for (; j < n; ++j) add(j, static_cast<int>(j % kLanes));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      sum_x[lane] += sum_x[lane + half];
      sum_y[lane] += sum_y[lane + half];
      sum_z[lane] += sum_z[lane + half];
    }
  }
  force[0] = sum_x[0], force[1] = sum_y[0], force[2] = sum_z[0];
}

// Calls task(atoms, molecule, first, last) for at most kRows rows of every molecule.
template <typename Task>
void for_rows(const Positions& positions, const Task& task) {
  const int64_t n = positions.atoms, blocks = (n + kRows - 1) / kRows;
  const int64_t grain = n == 0 ? 1 : std::max<int64_t>(1, kPairsPerTask / (n * kRows));
  torch::stable::parallel_for(0, positions.molecules * blocks, grain,
                              [&](int64_t begin, int64_t end) {
                                Atoms atoms;
                                for (int64_t b = begin; b < end; ++b) {
                                  const int64_t molecule = b / blocks, first = b % blocks * kRows;
                                  if (b == begin || first == 0) atoms.load(positions, molecule);
                                  task(atoms, molecule, first, std::min<int64_t>(n, first + kRows));
                                }
                              });
}

}  // namespace

void pairwise_distances(const Positions& positions, float* distances) {
  const int64_t n = positions.atoms;
  for_rows(positions, [&](const Atoms& atoms, int64_t molecule, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float* row = distances + (molecule * n + i) * n;
      if (atoms.real[i]) {
        measure(atoms, i, n, row);
      } else {
        std::fill_n(row, n, 0.0f);
      }
    }
  });
}

void pairwise_distances_backward(const Positions& positions, const float* grad, float* gradient) {
  const int64_t n = positions.atoms;
  for_rows(positions, [&](const Atoms& atoms, int64_t molecule, int64_t first, int64_t last) {
    const float* molecule_grad = grad + molecule * n * n;
    std::vector<float> across(kRows * n);
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = first; i < last; ++i) across[(i - first) * n + j] = molecule_grad[j * n + i];
    }
    for (int64_t i = first; i < last; ++i) {
      float* force = gradient + 3 * (molecule * n + i);
      std::fill_n(force, 3, 0.0f);
      if (!atoms.real[i]) continue;
      pull(atoms, i, n, molecule_grad + i * n, &across[(i - first) * n], force);
    }
  });
}

// On one thread: a fiftieth of what attention does with these pairs, once for all its layers.
void occurring_distances(const PackedPositions& positions, float high, int64_t count,
                         uint8_t* parts) {
  std::fill_n(parts, count, uint8_t{0});
  const float per_part = high > 0 ? static_cast<float>(count) / high : 0;
  const float last = static_cast<float>(count - 1);
  Atoms atoms;
  std::vector<float> row;
  int64_t first = 0;
  for (int64_t b = 0; b < positions.molecules; first += positions.sizes[b++]) {
    const int64_t n = positions.sizes[b];
    atoms.load(positions.coordinates, positions.valid, first, n);
    row.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      if (!atoms.real[i]) continue;
      measure(atoms, i, i + 1, row.data());  // padding is at 0, as is i itself
      for (int64_t j = 0; j <= i; ++j) {
        parts[static_cast<int64_t>(std::min(last, row[j] * per_part))] = 1;  // NaN: last
      }
    }
  }
}

}  // namespace collamo::cpu
