// All-pairs hop counts by breadth-first search from every atom at once.
//
// reach[v] is a bit set: the atoms that v reaches within the bonds walked so far. One more bond is
//   reach'[v] = reach[v] | OR over v→u of reach[u],
// 64 pairs to an instruction. Each pair is written once, when its bit first appears. Atoms are
// numbered inside their molecule; targets are taken in blocks of at most 512, so that the sets of a
// large molecule stay in cache and its memory grows with N, not N².

#include "shortest_paths.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace collamo::cpu {
namespace {

constexpr int kLongest = 253;
constexpr uint8_t kUnreachable = 255;
constexpr int64_t kPairsPerTask =
    16384;  // ≈ 20 µs of work, several times what waking a thread costs

// The edges that leave each atom of the batch: targets[first[v]] … targets[first[v + 1] - 1].
struct OutgoingEdges {
  std::vector<int64_t> first;
  std::vector<int64_t> targets;
};

[[noreturn]] void bad_edge(int64_t edge, int64_t from, int64_t to, const char* why) {
  throw std::invalid_argument("edge_index column " + std::to_string(edge) + " is [" +
                              std::to_string(from) + ", " + std::to_string(to) + "]; " + why);
}

OutgoingEdges sort_by_source(const Graphs& graphs) {
  const int64_t atoms = graphs.ptr[graphs.molecules];
  OutgoingEdges edges{std::vector<int64_t>(atoms + 1), std::vector<int64_t>(graphs.edges)};
  for (int64_t e = 0; e < graphs.edges; ++e) {
    const int64_t from = graphs.source[e], to = graphs.target[e];
    if (from < 0 || from >= atoms || to < 0 || to >= atoms) {
      bad_edge(e, from, to, "ptr has fewer atoms; number atoms from 0 through the whole batch");
    }
    ++edges.first[from];
  }
  int64_t total = 0;
  for (int64_t& count : edges.first) count = total += count;  // now the end of each atom's edges
  for (int64_t e = graphs.edges; e-- > 0;) {
    edges.targets[--edges.first[graphs.source[e]]] = graphs.target[e];
  }
  return edges;
}

// Here and not in the parallel loop, which would swallow the message.
void check_edges_stay_inside(const OutgoingEdges& edges, const Graphs& graphs) {
  for (int64_t b = 0; b < graphs.molecules; ++b) {
    const int64_t start = graphs.ptr[b], stop = graphs.ptr[b + 1];
    for (int64_t e = edges.first[start]; e < edges.first[stop]; ++e) {
      if (edges.targets[e] >= start && edges.targets[e] < stop) continue;
      throw std::invalid_argument("edge_index joins molecule " + std::to_string(b) + " to atom " +
                                  std::to_string(edges.targets[e]) +
                                  " of another; an edge must stay inside one molecule");
    }
  }
}

// One molecule, with neighbours numbered inside it.
struct Molecule {
  int64_t atoms = 0;
  std::vector<uint32_t> first;
  std::vector<uint16_t> neighbours;
  std::vector<uint16_t> order;

  void load(const OutgoingEdges& edges, int64_t start, int64_t stop) {
    atoms = stop - start;
    first.assign(1, 0);
    neighbours.clear();
    for (int64_t v = start; v < stop; ++v) {
      for (int64_t e = edges.first[v]; e < edges.first[v + 1]; ++e) {
        neighbours.push_back(static_cast<uint16_t>(edges.targets[e] - start));
      }
      first.push_back(static_cast<uint32_t>(neighbours.size()));
    }
    order.clear();
  }

  // Fills `order`: every atom once, behind the neighbour from which a breadth-first walk met it.
  void walk() {
    if (!order.empty()) return;
    std::vector<bool> met(atoms, false);
    for (int64_t root = 0; root < atoms; ++root) {
      if (met[root]) continue;
      met[root] = true;
      order.push_back(static_cast<uint16_t>(root));
      for (size_t i = order.size() - 1; i < order.size(); ++i) {
        for (uint32_t e = first[order[i]]; e < first[order[i] + 1]; ++e) {
          if (met[neighbours[e]]) continue;
          met[neighbours[e]] = true;
          order.push_back(neighbours[e]);
        }
      }
    }
  }
};

// The search for 64·Words targets of one molecule.
template <int Words>
class Search {
  using Set = std::array<uint64_t, Words>;
  // In a large molecule few atoms meet a block's targets at one time; in a small one the test costs
  // more than it saves.
  static constexpr bool kSkipStale = Words > 2;

 public:
  // `hops` is the molecule's matrix, its rows `pitch` apart, filled with kUnreachable.
  void run(Molecule& molecule, int64_t first_target, int64_t pitch, uint8_t* hops) {
    hops_ = hops + first_target;
    pitch_ = pitch;
    start(molecule.atoms, first_target);
    int level = 1;
    while (level <= kLongest && walk_one_bond(molecule, static_cast<uint8_t>(level))) ++level;
    if (level > kLongest) walk_to_the_end(molecule);
  }

 private:
  void start(int64_t atoms, int64_t first_target) {
    reach_.assign(atoms, Set{});
    latest_.assign(atoms, Set{});
    next_.resize(atoms);
    fresh_.assign(atoms, 1);
    next_fresh_.resize(atoms);
    const int64_t end = std::min<int64_t>(atoms, first_target + 64 * Words);
    for (int64_t v = first_target; v < end; ++v) {
      const int64_t bit = v - first_target;
      reach_[v][bit / 64] = latest_[v][bit / 64] = uint64_t{1} << (bit % 64);
      hops_[v * pitch_ + bit] = 0;
    }
  }

  // latest[v] holds the targets at exactly level - 1 bonds from v, fresh[v] whether there are any;
  // returns whether any new target was met.
  bool walk_one_bond(const Molecule& molecule, uint8_t level) {
    // Local pointers: a byte written to a row may alias anything, so the compiler would read the
    // members again after each.
    const uint32_t* first = molecule.first.data();
    const uint16_t* neighbours = molecule.neighbours.data();
    const Set* latest = latest_.data();
    const uint8_t* fresh = fresh_.data();
    Set* next = next_.data();
    Set* reach = reach_.data();
    uint8_t* row = hops_;
    bool any = false;
    const int64_t atoms = molecule.atoms, pitch = pitch_;
    for (int64_t v = 0; v < atoms; ++v, row += pitch) {
      Set found{};
      bool heard = !kSkipStale;
      for (uint32_t e = first[v], end = first[v + 1]; e < end; ++e) {
        const uint16_t u = neighbours[e];
        if (kSkipStale && !fresh[u]) continue;
        heard = true;
        for (int w = 0; w < Words; ++w) found[w] |= latest[u][w];
      }
      const bool met = heard && keep_new(reach[v], level, row, found);
      any |= met;
      if (heard) next[v] = found;
      if (kSkipStale) next_fresh_[v] = met;
    }
    latest_.swap(next_);
    fresh_.swap(next_fresh_);
    return any;
  }

  // Past the longest hop only "reachable" counts, so sets are updated in place: one sweep down the
  // order gathers everything at each root, one up hands it out (edges both ways; else sweep on).
  void walk_to_the_end(Molecule& molecule) {
    molecule.walk();
    bool any = true;
    for (bool upwards = false; any; upwards = !upwards) {
      any = false;
      for (int64_t i = 0; i < molecule.atoms; ++i) {
        const int64_t v = molecule.order[upwards ? i : molecule.atoms - 1 - i];
        Set found{};
        for (uint32_t e = molecule.first[v]; e < molecule.first[v + 1]; ++e) {
          const Set& there = reach_[molecule.neighbours[e]];
          for (int w = 0; w < Words; ++w) found[w] |= there[w];
        }
        any |= keep_new(reach_[v], kLongest, hops_ + v * pitch_, found);
      }
    }
  }

  // Reduces `found` to the targets not yet in `reach`, adds them, and writes their hops.
  static bool keep_new(Set& reach, uint8_t level, uint8_t* row, Set& found) {
    bool any = false;
    for (int w = 0; w < Words; ++w) {
      found[w] &= ~reach[w];
      reach[w] |= found[w];
      any |= found[w] != 0;
      for (uint64_t rest = found[w]; rest != 0; rest &= rest - 1) {
        row[64 * w + __builtin_ctzll(rest)] = level;
      }
    }
    return any;
  }

  std::vector<Set> reach_, latest_, next_;
  std::vector<uint8_t> fresh_, next_fresh_;
  uint8_t* hops_ = nullptr;
  int64_t pitch_ = 0;
};

// Scratch memory of one thread, kept from molecule to molecule.
class Searcher {
 public:
  void run(const OutgoingEdges& edges, int64_t start, int64_t stop, int64_t pitch, uint8_t* hops) {
    molecule_.load(edges, start, stop);
    const int64_t atoms = stop - start;
    if (atoms <= 64) return search(narrow_, 64, pitch, hops);
    if (atoms <= 128) return search(middle_, 128, pitch, hops);
    search(wide_, 512, pitch, hops);
  }

 private:
  template <int Words>
  void search(Search<Words>& search, int64_t block, int64_t pitch, uint8_t* hops) {
    for (int64_t first = 0; first < molecule_.atoms; first += block) {
      search.run(molecule_, first, pitch, hops);
    }
  }

  Molecule molecule_;
  Search<1> narrow_;
  Search<2> middle_;
  Search<8> wide_;
};

}  // namespace

void shortest_paths(const Graphs& graphs, int64_t padded, uint8_t* hops) {
  const OutgoingEdges edges = sort_by_source(graphs);
  check_edges_stay_inside(edges, graphs);
  const int64_t* ptr = graphs.ptr;
  std::vector<int64_t> offset(graphs.molecules + 1, 0);
  for (int64_t b = 0; b < graphs.molecules; ++b) {
    const int64_t rows = padded < 0 ? ptr[b + 1] - ptr[b] : padded;
    offset[b + 1] = offset[b] + rows * rows;
  }
  const int64_t pairs = std::max<int64_t>(1, offset[graphs.molecules]);
  const int64_t grain = std::max<int64_t>(1, graphs.molecules * kPairsPerTask / pairs);
  torch::stable::parallel_for(0, graphs.molecules, grain, [&](int64_t begin, int64_t end) {
    Searcher searcher;
    for (int64_t b = begin; b < end; ++b) {
      std::memset(hops + offset[b], kUnreachable, offset[b + 1] - offset[b]);
      const int64_t pitch = padded < 0 ? ptr[b + 1] - ptr[b] : padded;
      searcher.run(edges, ptr[b], ptr[b + 1], pitch, hops + offset[b]);
    }
  });
}

}  // namespace collamo::cpu
