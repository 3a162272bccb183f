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

// The atoms of molecules of any sizes [molecules], one after the other: coordinates [T, 3], valid
// [T].
struct PackedPositions {
  const float* coordinates;
  const uint8_t* valid;
  const int64_t* sizes;
  int64_t molecules;
};

// Writes distances [molecules, atoms, atoms], 0 where a pair has padding in it.
void pairwise_distances(const Positions& positions, float* distances);

// Writes dL/dcoordinates for dL/ddistances `grad`; 0 for padding, whatever stands in `grad` there.
void pairwise_distances_backward(const Positions& positions, const float* grad, float* gradient);

// Sets parts [count], of equal parts of [0, high], to 1 where the distance of two atoms is.
void occurring_distances(const PackedPositions& positions, float high, int64_t count,
                         uint8_t* parts);

}  // namespace collamo::cpu
