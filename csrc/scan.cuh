// A running total over the threads of a block.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace collamo::cuda {

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffff;

inline __device__ int lane() { return static_cast<int>(threadIdx.x % kWarp); }

// The sum over the lanes up to this one.
inline __device__ int64_t sum_through_warp(int64_t value) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t left = __shfl_up_sync(kEveryLane, value, step);
    if (lane() >= step) value += left;
  }
  return value;
}

// The sum over the threads up to this one, and over all of them. Every thread of the block calls.
inline __device__ int64_t sum_through_block(int64_t value, int64_t* total) {
  __shared__ int64_t warps[kWarp];
  const int warp = threadIdx.x / kWarp;
  value = sum_through_warp(value);
  if (lane() == kWarp - 1) warps[warp] = value;
  __syncthreads();
  if (warp == 0) {
    const bool any = lane() * kWarp < static_cast<int>(blockDim.x);
    const int64_t sum = sum_through_warp(any ? warps[lane()] : 0);
    warps[lane()] = sum;
  }
  __syncthreads();
  if (warp > 0) value += warps[warp - 1];
  *total = warps[kWarp - 1];
  __syncthreads();  // all must read these sums before anyone writes the next round's
  return value;
}

}  // namespace collamo::cuda
