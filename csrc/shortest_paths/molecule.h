// Who is bonded to whom in each molecule of a batch, laid out for the search.

#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "graphs.h"

namespace collamo::cpu {
namespace {

[[noreturn]] void bad_edge(const Graphs& graphs, int64_t edge, const char* why) {
  throw std::invalid_argument("edge_index column " + std::to_string(edge) + " is [" +
                              std::to_string(graphs.source[edge]) + ", " +
                              std::to_string(graphs.target[edge]) + "]; " + why);
}

// The edges of the batch, checked and molecule by molecule: b has first[b] … first[b + 1] - 1.
class EdgesByMolecule {
 public:
  const int64_t* source;
  const int64_t* target;
  std::vector<int64_t> first;

  // Throws here and not in the parallel loop, which swallows the message.
  explicit EdgesByMolecule(const Graphs& graphs)
      : source(graphs.source), target(graphs.target), first(graphs.molecules + 1, 0) {
    bool grouped = true;
    int64_t b = 0, start = 0, stop = 0;  // the molecule of the edge before, nearly always the same
    for (int64_t e = 0; e < graphs.edges; ++e) {
      const int64_t from = graphs.source[e], to = graphs.target[e];
      if (from < start || from >= stop || to < start || to >= stop) {
        const int64_t before = b;
        b = molecule_of(graphs, e);
        start = graphs.ptr[b], stop = graphs.ptr[b + 1];
        if (to < start || to >= stop) bad_edge(graphs, e, "an edge must stay inside one molecule");
        grouped &= b >= before;
      }
      ++first[b + 1];
    }
    for (int64_t i = 0; i < graphs.molecules; ++i) first[i + 1] += first[i];
    if (!grouped) sort(graphs);
  }

 private:
  static int64_t molecule_of(const Graphs& graphs, int64_t edge) {
    const int64_t *ptr = graphs.ptr, *last = ptr + graphs.molecules;
    const int64_t from = graphs.source[edge], to = graphs.target[edge];
    if (from < 0 || from >= *last || to < 0 || to >= *last) {
      bad_edge(graphs, edge, "ptr has fewer atoms; number atoms from 0 through the whole batch");
    }
    return std::upper_bound(ptr, last, from) - ptr - 1;
  }

  void sort(const Graphs& graphs) {
    sorted_.resize(2 * graphs.edges);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t e = 0; e < graphs.edges; ++e) {
      const int64_t at = next[molecule_of(graphs, e)]++;
      sorted_[at] = graphs.source[e];
      sorted_[graphs.edges + at] = graphs.target[e];
    }
    source = sorted_.data();
    target = source + graphs.edges;
  }

  std::vector<int64_t> sorted_;
};

// One molecule, with atoms numbered inside it. The neighbours of atom v stand in the groups of four
// begin(v) … end(v) - 1, filled up with v itself: four at a time need no inner loop that is
// mispredicted, and few atoms have more.
struct Molecule {
  int64_t atoms = 0;
  bool one_group = true;
  std::vector<uint32_t> first, next;
  std::vector<uint16_t> neighbours;
  std::vector<uint16_t> order;

  void load(const EdgesByMolecule& edges, int64_t b, int64_t start, int64_t stop) {
    atoms = stop - start;
    order.clear();
    const int64_t *from = edges.source + edges.first[b], *to = edges.target + edges.first[b];
    const int64_t count = edges.first[b + 1] - edges.first[b];
    one_group = load_fours(from, to, count, start);
    if (!one_group) load_groups(from, to, count, start);
  }

  // Takes four neighbours of each atom; returns whether that was all of them, as it nearly always
  // is.
  bool load_fours(const int64_t* from, const int64_t* to, int64_t count, int64_t start) {
    next.assign(atoms, 0);
    neighbours.resize(std::max<size_t>(neighbours.size(), 4 * atoms));
    for (int64_t v = 0; v < atoms; ++v) {
      std::fill_n(&neighbours[4 * v], 4, static_cast<uint16_t>(v));
    }
    for (int64_t e = 0; e < count; ++e) {
      const int64_t v = from[e] - start;
      const uint32_t slot = next[v]++;
      if (slot == 4) return false;
      neighbours[4 * v + slot] = static_cast<uint16_t>(to[e] - start);
    }
    return true;
  }

  void load_groups(const int64_t* from, const int64_t* to, int64_t count, int64_t start) {
    next.assign(atoms, 0);
    for (int64_t e = 0; e < count; ++e) ++next[from[e] - start];
    first.resize(atoms + 1);
    neighbours.resize(std::max<size_t>(neighbours.size(), 4 * atoms + count));
    uint32_t groups = 0;
    for (int64_t v = 0; v < atoms; ++v) {
      first[v] = groups;
      groups += std::max<uint32_t>(1, (next[v] + 3) / 4);
      next[v] = 4 * first[v];
      std::fill_n(&neighbours[4 * first[v]], 4 * (groups - first[v]), static_cast<uint16_t>(v));
    }
    first[atoms] = groups;
    for (int64_t e = 0; e < count; ++e) {
      neighbours[next[from[e] - start]++] = static_cast<uint16_t>(to[e] - start);
    }
  }

  // The groups of atom v.
  int64_t begin(int64_t v) const { return one_group ? v : first[v]; }
  int64_t end(int64_t v) const { return one_group ? v + 1 : first[v + 1]; }

  // Fills `order`: every atom once, behind the neighbour from which a breadth-first walk met it.
  void walk() {
    if (!order.empty()) return;
    std::vector<bool> met(atoms, false);
    for (int64_t root = 0; root < atoms; ++root) {
      if (met[root]) continue;
      met[root] = true;
      order.push_back(static_cast<uint16_t>(root));
      for (size_t i = order.size() - 1; i < order.size(); ++i) {
        for (int64_t e = 4 * begin(order[i]); e < 4 * end(order[i]); ++e) {
          if (met[neighbours[e]]) continue;
          met[neighbours[e]] = true;
          order.push_back(neighbours[e]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace collamo::cpu
