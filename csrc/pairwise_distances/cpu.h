#pragma once

#include <cstdint>

namespace collamo::cpu {

// Molecules of `atoms` atoms each: coordinates [molecules, atoms, 3]; valid [molecules, atoms],
// 0 for padding, or null.
struct Positions {
  const float* coordinates;
  const uint8_t* valid;
  int64_t molecules;
  int64_t atoms;
};

// Molecules of any sizes [molecules], laid end to end: coordinates [T, 3], valid [T].
struct PackedPositions {
  const float* coordinates;
  const uint8_t* valid;
  const int64_t* sizes;
  int64_t molecules;
};

// Writes distances [molecules, atoms, atoms], 0 where a pair has padding in it.
void pairwise_distances(const Positions& positions, float* distances);

// Writes dL/dcoordinates for dL/ddistances `grad`; 0 for padding, whatever `grad` has there.
void pairwise_distances_backward(const Positions& positions, const float* grad, float* gradient);

// parts [count] cut [0, high] into equal parts: 1 if some distance of two atoms is in it, else 0.
void occurring_distances(const PackedPositions& positions, float high, int64_t count,
                         uint8_t* parts);

}  // namespace collamo::cpu
