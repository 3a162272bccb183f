// Pairs of atoms sorted by hops on a GPU: one byte each, so one pass of a counting sort.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace collamo::cuda {

constexpr int kBins = 257;  // the values of a byte, and one for padding

// Words of 64 bits that `sort_pairs` works in.
int64_t sort_words(int64_t pairs);

// real [pairs]: 0 for a pair of padding, whose key is 256 whatever its hops; null if all are real.
// order [pairs]: the pairs by key; pairs with equal keys keep their order.
// keys [pairs]: the keys in that order, one byte each if `real` is null, else int16.
// starts [257]: where in the order each key begins.
cudaError_t sort_pairs(const uint8_t* hops, const uint8_t* real, int64_t pairs, int64_t* words,
                       int64_t* order, void* keys, int64_t* starts, cudaStream_t stream);

}  // namespace collamo::cuda
