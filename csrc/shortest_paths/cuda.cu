// All-pairs hop counts by breadth-first search from every atom at once, on a GPU.
//
// As on the CPU (cpu.cpp), away[v] is a set of 64 targets more than k bonds away from v, and one
// more bond is away'[v] = away[v] & AND over v→u of away[u]. Here the edges push: a thread takes an
// edge and clears bits of next[v] by an integer atomic, whose order cannot matter, so edges need no
// order and no adjacency list. The hops of a pair are the number of k at which it was still away,
// kept as bit planes in Gray code: counting up by one flips one plane.
//
// Two launches for molecules of up to 64 atoms. `survey` checks every number, finds each molecule's
// first edge and first pair, and lists the molecules that need more than a warp; `search` gives a
// molecule a warp, 64 targets of one with up to 512 atoms a block, and beyond that a block that
// takes one piece of work after the other and keeps its sets in global memory.

#include <algorithm>
#include <vector>

#include "../launch.cuh"
#include "../scan.cuh"
#include "cuda.h"

namespace collamo::cuda {
namespace {

using Set = uint64_t;

constexpr int kTargets = 64;        // of one search: the bits of a Set
constexpr int kShared = 512;        // atoms whose sets fit in shared memory: 40 KiB
constexpr int kPlanes = 8;          // of counts up to kLongest
constexpr int kSets = kPlanes + 2;  // of an atom: away, next and the planes
constexpr int kLongest = 253;
constexpr uint8_t kUnreachable = 255;

constexpr int kSurveyThreads = 1024;
constexpr int kEdgesPerThread = 4;
constexpr int kSmallThreads = kWarp;
constexpr int kBlockThreads = 256;
constexpr int64_t kScratchWords = int64_t{1} << 25;  // 256 MiB

// --- survey --------------------------------------------------------------------------------------

// The parts of `words`.
struct Words {
  int64_t* totals;  // pairs, largest, large
  int64_t* wrong;   // of each block of the survey
  int64_t* pair;    // of each molecule, the place of its first pair when packed
  int64_t* edge;    // of each molecule and after the last, its first edge
  int64_t* large;   // the molecules of more than kTargets atoms, in no order
};

// One block checks ptr, each of the others some edges, and the last the end of all edges.
int64_t survey_blocks(const Graphs& graphs) {
  return 1 + graphs.edges / (kSurveyThreads * kEdgesPerThread) + 1;
}

Words parts(const Graphs& graphs, const int64_t* words) {
  Words parts;
  parts.totals = const_cast<int64_t*>(words);
  parts.wrong = parts.totals + 3;
  parts.pair = parts.wrong + survey_blocks(graphs);
  parts.edge = parts.pair + graphs.molecules;
  parts.large = parts.edge + graphs.molecules + 1;
  return parts;
}

// Every thread returns the same.
__device__ bool survey_molecules(const Graphs& graphs, const Limits& limits, const Words& words) {
  __shared__ int largest, large;
  if (threadIdx.x == 0) largest = large = 0;
  __syncthreads();
  bool wrong = graphs.ptr[0] != 0;
  int64_t pairs = 0;
  int most = 0;
  for (int64_t first = 0; first < graphs.molecules; first += blockDim.x) {
    const int64_t b = first + threadIdx.x;
    const bool any = b < graphs.molecules;
    int64_t atoms = any ? graphs.ptr[b + 1] - graphs.ptr[b] : 0;
    if (atoms < 0 || atoms > limits.atoms) {
      wrong = true;
      atoms = 0;
    }
    most = max(most, static_cast<int>(atoms));
    int64_t total;
    const int64_t through = sum_through_block(atoms * atoms, &total);
    if (any) words.pair[b] = pairs + through - atoms * atoms;
    if (atoms > kTargets) words.large[atomicAdd(&large, 1)] = b;
    pairs += total;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    most = max(most, __shfl_xor_sync(kEveryLane, most, step));
  }
  if (lane() == 0) atomicMax(&largest, most);
  wrong |= limits.pairs >= 0 && limits.pairs != pairs;
  wrong = __syncthreads_or(wrong);
  if (threadIdx.x == 0) {
    words.totals[0] = pairs;
    words.totals[1] = largest;
    words.totals[2] = large;
  }
  return wrong;
}

// The molecule of an atom, if ptr rises; else any molecule.
__device__ int64_t molecule_of(const Graphs& graphs, int64_t atom) {
  int64_t low = 0, high = graphs.molecules - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (graphs.ptr[middle] <= atom) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

__device__ bool inside(const Graphs& graphs, int64_t b, int64_t atom) {
  return b >= 0 && graphs.ptr[b] <= atom && atom < graphs.ptr[b + 1];
}

// The end of all edges counts as an edge of one more molecule.
__device__ bool survey_edges(const Graphs& graphs, const Words& words) {
  const int64_t thread = (blockIdx.x - 1) * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t first = thread * kEdgesPerThread;
  int64_t molecule[kEdgesPerThread + 1];  // of the edge before the first, and of each
  bool wrong = false;
  molecule[0] =
      first == 0 || first > graphs.edges ? -1 : molecule_of(graphs, graphs.source[first - 1]);
#pragma unroll
  for (int i = 0; i < kEdgesPerThread; ++i) {
    const int64_t e = first + i;
    int64_t b = graphs.molecules;
    if (e < graphs.edges) {
      const int64_t from = graphs.source[e], to = graphs.target[e];
      b = inside(graphs, molecule[i], from) ? molecule[i] : molecule_of(graphs, from);
      wrong |= b < molecule[i] || !inside(graphs, b, from) || !inside(graphs, b, to);
    }
    molecule[i + 1] = b;
  }
  wrong = __syncthreads_or(wrong);
  if (wrong) return true;  // unsorted molecules would make the loop below long
#pragma unroll
  for (int i = 0; i < kEdgesPerThread; ++i) {
    if (first + i > graphs.edges) break;
    for (int64_t b = molecule[i] + 1; b <= molecule[i + 1]; ++b) words.edge[b] = first + i;
  }
  return false;
}

__global__ void __launch_bounds__(kSurveyThreads, 1)
    survey_kernel(Graphs graphs, Limits limits, bool trap, Words words) {
  const bool wrong =
      blockIdx.x == 0 ? survey_molecules(graphs, limits, words) : survey_edges(graphs, words);
  if (threadIdx.x == 0) words.wrong[blockIdx.x] = wrong;
  if (wrong && trap) __trap();
}

// --- search --------------------------------------------------------------------------------------

// One molecule; its matrix of hops has `pitch` rows and columns, of which `atoms` are in use.
struct Molecule {
  const int64_t* source;
  const int64_t* target;
  int64_t edges;
  int64_t start;
  int atoms;
  int64_t pitch;
  uint8_t* hops;

  // Both ends of an edge, numbered inside the molecule.
  __device__ uint32_t edge(int64_t e) const {
    return static_cast<uint32_t>(source[e] - start) | static_cast<uint32_t>(target[e] - start)
                                                          << 16;
  }
};

struct GraphBatch {
  Graphs graphs;
  Words words;
  int64_t padded;  // or -1
  uint8_t* hops;

  __device__ int atoms(int64_t b) const {
    return static_cast<int>(graphs.ptr[b + 1] - graphs.ptr[b]);
  }

  __device__ Molecule molecule(int64_t b) const {
    const int64_t edge = words.edge[b];
    const bool packed = padded < 0;
    Molecule molecule;
    molecule.source = graphs.source + edge;
    molecule.target = graphs.target + edge;
    molecule.edges = words.edge[b + 1] - edge;
    molecule.start = graphs.ptr[b];
    molecule.atoms = atoms(b);
    molecule.pitch = packed ? molecule.atoms : padded;
    molecule.hops = hops + (packed ? words.pair[b] : b * padded * padded);
    return molecule;
  }
};

// 4 bits → 4 bytes of 0 or 1.
__device__ uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

__device__ void store(uint8_t* to, uint32_t bytes, unsigned count) {
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = bytes;
    return;
  }
  for (unsigned i = 0; i < min(count, 4u); ++i) to[i] = static_cast<uint8_t>(bytes >> 8 * i);
}

// Searches for 64 targets of a molecule and writes their columns, up to the end of the row for the
// last targets, and rows of padding too. Every thread of the block calls.
template <int kThreads, int kStaged>
class Search {
 public:
  __device__ Search(const Molecule& molecule, int first_target, Set* sets, uint32_t* staged)
      : molecule_(molecule),
        atoms_(molecule.atoms),
        first_target_(first_target),
        away_(sets),
        next_(sets + atoms_),
        planes_(sets + 2 * static_cast<int64_t>(atoms_)),
        staged_(staged) {}

  __device__ void run() {
    for (int v = threadIdx.x; v < atoms_; v += kThreads) {
      const int bit = v - first_target_;
      away_[v] = ~(0 <= bit && bit < kTargets ? Set{1} << bit : Set{0});
    }
    for (int64_t e = threadIdx.x; e < molecule_.edges && e < kStaged; e += kThreads) {
      staged_[e] = molecule_.edge(e);
    }
    // No barrier: a thread counts the atoms that it has just set, and `walk` waits after that.
    write(count_bonds());
  }

 private:
  // Returns the largest number of hops, kLongest at most; beyond, only "away for ever" matters.
  __device__ int count_bonds() {
    int bonds = 0;
    for (; bonds < kLongest; ++bonds) {
      Set* plane = planes_ + static_cast<int64_t>(__ffs(bonds + 1) - 1) * atoms_;
      const bool first_turn = (bonds & (bonds + 1)) == 0;
      for (int v = threadIdx.x; v < atoms_; v += kThreads) {
        plane[v] = first_turn ? away_[v] : plane[v] ^ away_[v];
      }
      if (!walk()) return bonds;
    }
    while (walk()) continue;
    return bonds;
  }

  // Walks one bond further; returns whether any target came nearer to any atom.
  __device__ bool walk() {
    for (int v = threadIdx.x; v < atoms_; v += kThreads) next_[v] = away_[v];
    __syncthreads();
    bool met = false;
#pragma unroll 1
    for (int64_t e = threadIdx.x; e < molecule_.edges; e += kThreads) {
      const uint32_t edge = e < kStaged ? staged_[e] : molecule_.edge(e);
      const Set there = away_[edge >> 16];
      const Set gone = away_[edge & 0xffff] & ~there;
      clear(&next_[edge & 0xffff], there, gone);
      met |= gone != 0;
    }
    met = __syncthreads_or(met);
    Set* now = next_;
    next_ = away_;
    away_ = now;
    return met;
  }

  // In halves: for 64 bits in shared memory, the atomic is a loop of compare-and-swap.
  __device__ static void clear(Set* set, Set keep, Set gone) {
    uint32_t* half = reinterpret_cast<uint32_t*>(set);
    if (static_cast<uint32_t>(gone)) atomicAnd(half, static_cast<uint32_t>(keep));
    if (gone >> 32) atomicAnd(half + 1, static_cast<uint32_t>(keep >> 32));
  }

  // Four hops at a time: Gray code to binary from the top plane down, then 255 for what was never
  // reached.
  __device__ void write(int longest) const {
    const int planes = 32 - __clz(longest);
    const bool last = first_target_ + kTargets >= atoms_;
    const unsigned rows = static_cast<unsigned>(molecule_.pitch);
    const unsigned columns = last ? rows - first_target_ : kTargets;
    const unsigned fours = (columns + 3) / 4;
    for (unsigned i = threadIdx.x; i < rows * fours; i += kThreads) {  // at most 2³⁰
      const unsigned v = i / fours, column = i % fours * 4;
      uint32_t bytes = kUnreachable * 0x01010101u;
      if (v < static_cast<unsigned>(atoms_) && column < kTargets) bytes = count(planes, v, column);
      store(molecule_.hops + v * molecule_.pitch + first_target_ + column, bytes, columns - column);
    }
  }

  __device__ uint32_t count(int planes, unsigned v, unsigned column) const {
    uint32_t bits = 0, bytes = 0;
    for (int j = planes - 1; j >= 0; --j) {
      bits ^= static_cast<uint32_t>(planes_[static_cast<int64_t>(j) * atoms_ + v] >> column);
      bytes = 2 * bytes + spread(bits);
    }
    return bytes | spread(static_cast<uint32_t>(away_[v] >> column)) * kUnreachable;
  }

  const Molecule& molecule_;
  const int atoms_;
  const int first_target_;
  Set* away_;
  Set* next_;
  Set* const planes_;
  uint32_t* const staged_;  // the first kStaged edges
};

constexpr int kSmallStaged = 256, kBlockStaged = 1024;

__global__ void __launch_bounds__(kSmallThreads) search_small(GraphBatch batch) {
  __shared__ Set sets[kSets * kTargets];
  __shared__ uint32_t staged[kSmallStaged];
  if (batch.atoms(blockIdx.x) > kTargets) return;
  const Molecule molecule = batch.molecule(blockIdx.x);
  Search<kSmallThreads, kSmallStaged>(molecule, 0, sets, staged).run();
}

__global__ void __launch_bounds__(kBlockThreads, 4) search_block(GraphBatch batch) {
  __shared__ Set sets[kSets * kShared];
  __shared__ uint32_t staged[kBlockStaged];
  if (blockIdx.x >= batch.words.totals[2]) return;
  const int64_t b = batch.words.large[blockIdx.x];
  const int atoms = batch.atoms(b), first_target = static_cast<int>(blockIdx.y) * kTargets;
  if (atoms > kShared || first_target >= atoms) return;
  const Molecule molecule = batch.molecule(b);
  Search<kBlockThreads, kBlockStaged>(molecule, first_target, sets, staged).run();
}

__global__ void __launch_bounds__(kBlockThreads, 4)
    search_far(GraphBatch batch, int64_t largest, Set* scratch) {
  __shared__ uint32_t staged[kBlockStaged];
  Set* sets = scratch + (blockIdx.y * gridDim.x + blockIdx.x) * kSets * largest;
  for (int64_t i = blockIdx.y; i < batch.words.totals[2]; i += gridDim.y) {
    const Molecule molecule = batch.molecule(batch.words.large[i]);
    if (molecule.atoms <= kShared) continue;
    for (int first = blockIdx.x * kTargets; first < molecule.atoms; first += gridDim.x * kTargets) {
      Search<kBlockThreads, kBlockStaged>(molecule, first, sets, staged).run();
      __syncthreads();  // the next search overwrites these sets
    }
  }
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t survey_words(const Graphs& graphs) {
  return 3 + survey_blocks(graphs) + 3 * graphs.molecules + 1;  // see `parts`
}

cudaError_t survey(const Graphs& graphs, const Limits& limits, bool trap, int64_t* words,
                   cudaStream_t stream) {
  return launch(dim3(survey_blocks(graphs)), kSurveyThreads, stream, survey_kernel, graphs, limits,
                trap, parts(graphs, words));
}

cudaError_t read_survey(const Graphs& graphs, const int64_t* words, Survey* sizes,
                        cudaStream_t stream) {
  std::vector<int64_t> host(3 + survey_blocks(graphs));  // totals, then what each block saw wrong
  cudaError_t error =
      cudaMemcpyAsync(host.data(), words, 8 * host.size(), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  const bool wrong = std::any_of(host.begin() + 3, host.end(), [](int64_t x) { return x != 0; });
  *sizes = {wrong, host[0], host[1], host[2]};
  return error;
}

Survey worst_case(const Graphs& graphs, const Limits& limits) {
  int64_t largest = limits.atoms;
  while (limits.pairs >= 0 && largest * largest > limits.pairs) --largest;
  return {false, limits.pairs, largest, largest > kTargets ? graphs.molecules : 0};
}

namespace {

// How many blocks search molecules of more than kShared atoms at a time: targets, molecules.
dim3 far_grid(const Survey& sizes) {
  if (sizes.largest <= kShared) return dim3(0, 0);
  const int64_t blocks = std::max<int64_t>(1, kScratchWords / (kSets * sizes.largest));
  const int64_t targets = std::min(blocks, ceil_divide(sizes.largest, kTargets));
  return dim3(targets, std::min(sizes.large, blocks / targets));
}

}  // namespace

int64_t scratch_words(const Survey& sizes) {
  const dim3 grid = far_grid(sizes);
  return int64_t{grid.x} * grid.y * kSets * sizes.largest;
}

cudaError_t search(const Graphs& graphs, const Survey& sizes, int64_t padded, const int64_t* words,
                   int64_t* scratch, uint8_t* hops, cudaStream_t stream) {
  const GraphBatch batch = {graphs, parts(graphs, words), padded, hops};
  const int64_t targets = ceil_divide(std::min<int64_t>(sizes.largest, kShared), kTargets);
  cudaError_t error = launch(dim3(graphs.molecules), kSmallThreads, stream, search_small, batch);
  if (error == cudaSuccess) {
    error = launch(dim3(sizes.large, targets), kBlockThreads, stream, search_block, batch);
  }
  if (error == cudaSuccess) {
    error = launch(far_grid(sizes), kBlockThreads, stream, search_far, batch, sizes.largest,
                   reinterpret_cast<Set*>(scratch));
  }
  return error;
}

}  // namespace collamo::cuda
