// A stable counting sort of bytes: count each tile's, sum over tiles, then give each its place.
//
// A warp ranks 32 pairs at a time by asking which lanes hold the same byte, so that equal bytes
// keep their order; the only atomics count integers.

#include "../launch.cuh"
#include "../scan.cuh"
#include "cuda.h"

namespace collamo::cuda {
namespace {

constexpr int kThreads = (kBins + kWarp - 1) / kWarp * kWarp;  // one for each key, in whole warps
constexpr int kWarps = kThreads / kWarp;
constexpr int kPairsPerWarp = 512;
constexpr int kPairsPerTile = kWarps * kPairsPerWarp;

struct Pairs {
  const uint8_t* hops;
  const uint8_t* real;  // or null
  int64_t count;

  __device__ unsigned key(int64_t i) const { return real && !real[i] ? kBins - 1 : hops[i]; }
};

// Without pairs, one tile still writes where every key begins.
int64_t tiles_of(int64_t pairs) { return pairs < 1 ? 1 : (pairs - 1) / kPairsPerTile + 1; }

// How often each key occurs in each warp's part of the tile.
__device__ void count_tile(const Pairs& pairs, unsigned (*counts)[kBins]) {
  if (threadIdx.x < kBins) {
    for (int w = 0; w < kWarps; ++w) counts[w][threadIdx.x] = 0;
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp;
  const int64_t first = (blockIdx.x * int64_t{kWarps} + warp) * kPairsPerWarp;
  for (int64_t i = first + lane(); i < pairs.count && i < first + kPairsPerWarp; i += kWarp) {
    atomicAdd(&counts[warp][pairs.key(i)], 1u);
  }
  __syncthreads();
}

// counts [key][tile].
__global__ void __launch_bounds__(kThreads) count(Pairs pairs, int64_t* counts) {
  __shared__ unsigned warp_counts[kWarps][kBins];
  count_tile(pairs, warp_counts);
  if (threadIdx.x >= kBins) return;
  int64_t sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += warp_counts[w][threadIdx.x];
  counts[threadIdx.x * int64_t{gridDim.x} + blockIdx.x] = sum;
}

// counts [key][tile] → how often the key occurs in the tiles before; totals [key].
__global__ void __launch_bounds__(kThreads)
    sum_over_tiles(int64_t tiles, int64_t* counts, int64_t* totals) {
  int64_t* row = counts + blockIdx.x * tiles;
  int64_t before = 0;
  for (int64_t first = 0; first < tiles; first += kThreads) {
    const int64_t tile = first + threadIdx.x;
    const int64_t mine = tile < tiles ? row[tile] : 0;
    int64_t total;
    const int64_t through = sum_through_block(mine, &total);
    if (tile < tiles) row[tile] = before + through - mine;
    before += total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

template <typename Key>
__global__ void __launch_bounds__(kThreads)
    place(Pairs pairs, const int64_t* counts, const int64_t* totals, int64_t* order, Key* keys,
          int64_t* starts) {
  __shared__ unsigned before[kWarps][kBins];  // of this tile's pairs, in order
  __shared__ int64_t start[kBins];            // in the order, of this tile's pairs of each key
  const bool has_key = threadIdx.x < kBins;
  const int64_t mine = has_key ? totals[threadIdx.x] : 0;
  int64_t total;
  const int64_t start_of_key = sum_through_block(mine, &total) - mine;
  count_tile(pairs, before);
  if (has_key) {
    start[threadIdx.x] = start_of_key + counts[threadIdx.x * int64_t{gridDim.x} + blockIdx.x];
    if (blockIdx.x == 0) starts[threadIdx.x] = start_of_key;
    unsigned running = 0;
    for (int w = 0; w < kWarps; ++w) {
      const unsigned here = before[w][threadIdx.x];
      before[w][threadIdx.x] = running;
      running += here;
    }
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp;
  const int64_t first = (blockIdx.x * int64_t{kWarps} + warp) * kPairsPerWarp;
  for (int64_t i = first + lane(); i - lane() < first + kPairsPerWarp; i += kWarp) {
    const bool any = i < pairs.count;
    const unsigned key = any ? pairs.key(i) : kBins;  // beyond the end: a key of its own
    const unsigned same = __match_any_sync(kEveryLane, key);
    const unsigned rank = __popc(same & ((1u << lane()) - 1));
    if (any) {
      const int64_t to = start[key] + before[warp][key] + rank;
      order[to] = i;
      keys[to] = static_cast<Key>(key);
    }
    __syncwarp();
    if (any && rank == 0) before[warp][key] += __popc(same);
    __syncwarp();
  }
}

}  // namespace

int64_t sort_words(int64_t pairs) { return kBins * (tiles_of(pairs) + 1); }

cudaError_t sort_pairs(const uint8_t* hops, const uint8_t* real, int64_t pairs, int64_t* words,
                       int64_t* order, void* keys, int64_t* starts, cudaStream_t stream) {
  const Pairs all = {hops, real, pairs};
  const int64_t tiles = tiles_of(pairs);
  int64_t *totals = words, *counts = words + kBins;
  cudaError_t error = launch(dim3(tiles), kThreads, stream, count, all, counts);
  if (error != cudaSuccess) return error;
  error = launch(dim3(kBins), kThreads, stream, sum_over_tiles, tiles, counts, totals);
  if (error != cudaSuccess) return error;
  if (real) {
    return launch(dim3(tiles), kThreads, stream, place<int16_t>, all, counts, totals, order,
                  static_cast<int16_t*>(keys), starts);
  }
  return launch(dim3(tiles), kThreads, stream, place<uint8_t>, all, counts, totals, order,
                static_cast<uint8_t*>(keys), starts);
}

}  // namespace collamo::cuda
