// All-pairs hop counts by breadth-first search from every atom at once.
//
// away[v] is a bit set: the atoms that are more than k bonds away from v. One more bond is
//   away'[v] = away[v] & AND over v→u of away[u],
// 64 pairs to an instruction. The hops of a pair are the number of k at which it was still away,
// and all pairs that are away have counted alike. So the counts are kept as bit planes in Gray
// code, where counting up by one flips one plane, plane[ctz(k + 1)] ^= away, and become bytes once,
// at the end: 1.4 µs for a molecule of 28 atoms, where writing each pair's byte as it is met takes
// 7. Atoms are numbered inside their molecule; targets are taken in blocks of at most 512, so that
// the sets of a large molecule stay in cache and its memory grows with N, not N².

#include "cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../clones.h"
#include "bits.h"
#include "molecule.h"

namespace collamo::cpu {
namespace {

constexpr int kLongest = 253;
constexpr int kPlanes = 8;  // of counts up to kLongest
constexpr uint8_t kUnreachable = 255;
constexpr int64_t kPairsPerTask = 32768;  // ≈ 50 µs, several times the cost of waking a thread

// Bit sets of 64·Words targets, which the compiler keeps in the widest registers there are.
template <int Words>
struct SetOf {
  typedef uint64_t Type __attribute__((vector_size(8 * Words)));
};
template <>
struct SetOf<1> {
  using Type = uint64_t;
};

// The search for 64·Words targets of one molecule.
template <int Words>
class Search {
  using Set = typename SetOf<Words>::Type;

 public:
  // Writes the columns first_target … first_target + 64·Words of the molecule's matrix, whose rows
  // are `pitch` apart. The last block of targets goes on to the end of the row.
  void run(Molecule& molecule, int64_t first_target, int64_t pitch, uint8_t* hops) {
    start(molecule.atoms, first_target);
    const int bonds = molecule.one_group ? walk<true>(molecule) : walk<false>(molecule);
    if (bonds == kLongest) walk_to_the_end(molecule);
    write(bonds, first_target, pitch, hops);
  }

 private:
  void start(int64_t atoms, int64_t first_target) {
    atoms_ = atoms;
    away_.assign(atoms, ~Set{});
    next_.resize(atoms);
    planes_.resize(kPlanes * atoms);
    const int64_t end = std::min<int64_t>(atoms, first_target + 64 * Words);
    for (int64_t v = first_target; v < end; ++v) {
      const int64_t bit = v - first_target;
      words_of(away_[v])[bit / 64] ^= uint64_t{1} << (bit % 64);
    }
  }

  // Walks bond by bond until no target comes nearer, kLongest at most; returns the longest hop.
  // kOneGroup: every atom has one group of neighbours, number v. Not inlined, because the loop then
  // loses its registers to what is around it.
  template <bool kOneGroup>
  [[gnu::noinline]] int walk(const Molecule& molecule) {
    const uint32_t* first = molecule.first.data();
    const uint16_t* neighbours = molecule.neighbours.data();
    Set *away = away_.data(), *next = next_.data();
    const int64_t atoms = atoms_;
    int bonds = 0;
    for (; bonds < kLongest; ++bonds) {
      Set* plane = planes_.data() + __builtin_ctz(bonds + 1) * atoms;
      if ((bonds & (bonds + 1)) == 0) std::fill(plane, plane + atoms, Set{});  // its first turn
      Set met{};
      for (int64_t v = 0; v < atoms; ++v) {
        const Set before = away[v];
        plane[v] ^= before;
        Set still = before;
        const int64_t begin = kOneGroup ? v : first[v], end = kOneGroup ? v + 1 : first[v + 1];
        for (int64_t g = begin; g < end; ++g) {
          const uint16_t* u = neighbours + 4 * g;
          still &= away[u[0]] & away[u[1]] & away[u[2]] & away[u[3]];
        }
        met |= still ^ before;
        next[v] = still;
      }
      std::swap(away, next);
      if (!any(met)) break;
    }
    if (away != away_.data()) away_.swap(next_);
    return bonds;
  }

  // Past the longest hop only "away for ever" counts, so sets are updated in place: one sweep down
  // the order gathers everything at each root, one up hands it out (edges both ways; else sweep
  // on).
  void walk_to_the_end(Molecule& molecule) {
    molecule.walk();
    Set met{};
    bool upwards = true;
    do {
      met = Set{};
      upwards = !upwards;
      for (int64_t i = 0; i < atoms_; ++i) {
        const int64_t v = molecule.order[upwards ? i : atoms_ - 1 - i];
        Set still = away_[v];
        for (int64_t e = 4 * molecule.begin(v); e < 4 * molecule.end(v); ++e) {
          still &= away_[molecule.neighbours[e]];
        }
        met |= still ^ away_[v];
        away_[v] = still;
      }
    } while (any(met));
  }

  // Rows from the first to the last and 32 columns at a time, of which those behind the row's end
  // are written over by the next row. AVX2 makes the whole search 9 % faster here, and the walk,
  // which is scalar, no faster.
  COLLAMO_ALSO_AVX2
  void write(int longest, int64_t first_target, int64_t pitch, uint8_t* hops) const {
    const int planes = longest == 0 ? 0 : 32 - __builtin_clz(longest);
    const bool last = first_target + 64 * Words >= atoms_;
    const int64_t columns = last ? pitch - first_target : 64 * Words;
    const uint8_t* end = hops + atoms_ * pitch;
    for (int64_t v = 0; v < atoms_; ++v) {
      uint8_t* row = hops + v * pitch + first_target;
      for (int64_t c = 0; c < columns; c += 32, row += 32) {
        const Columns counts = c < 64 * Words ? count(planes, v, c) : spread(~Lanes{});
        if (end - row >= 32) {
          write_columns(counts, row);
        } else {
          uint8_t bytes[32];
          write_columns(counts, bytes);
          std::memcpy(row, bytes, end - row);
        }
      }
    }
  }

  // The hops from v to 32 targets: Gray code to binary from the top bit down, then 255 over what
  // was never reached.
  Columns count(int planes, int64_t v, int64_t c) const {
    Lanes bits{};
    Columns counts{};
    const Set* plane = planes_.data() + planes * atoms_ + v;
    for (int j = 0; j < planes; ++j) {
      plane -= atoms_;
      bits ^= bits_of(*plane, c);
      const Columns one = spread(bits);
      counts.low += counts.low - one.low;  // -255 is 1
      counts.high += counts.high - one.high;
    }
    const Columns never = spread(bits_of(away_[v], c));
    return {counts.low | never.low, counts.high | never.high};
  }

  static Lanes bits_of(const Set& set, int64_t c) {
    uint32_t bits;
    std::memcpy(&bits, reinterpret_cast<const char*>(&set) + c / 8, 4);  // little-endian
    return Lanes{} + bits;
  }

  static bool any(const Set& set) {
    uint64_t any = 0;
    for (int w = 0; w < Words; ++w) any |= words_of(set)[w];
    return any != 0;
  }

  // A vector may be read and written through its elements.
  static const uint64_t* words_of(const Set& set) {
    return reinterpret_cast<const uint64_t*>(&set);
  }
  static uint64_t* words_of(Set& set) { return reinterpret_cast<uint64_t*>(&set); }

  int64_t atoms_ = 0;
  std::vector<Set> away_, next_, planes_;
};

// Scratch memory of one thread, kept from molecule to molecule.
class Searcher {
 public:
  void run(const EdgesByMolecule& edges, const Graphs& graphs, int64_t b, int64_t pitch,
           uint8_t* hops) {
    molecule_.load(edges, b, graphs.ptr[b], graphs.ptr[b + 1]);
    const int64_t atoms = molecule_.atoms;
    if (atoms <= 64) {
      search(narrow_, 64, pitch, hops);
    } else if (atoms <= 128) {
      search(middle_, 128, pitch, hops);
    } else {
      search(wide_, 512, pitch, hops);
    }
    if (pitch > atoms) {  // else hops may be null, which memset must not see
      std::memset(hops + atoms * pitch, kUnreachable, (pitch - atoms) * pitch);
    }
  }

 private:
  // From the last block to the first, because a block may write over the start of the next row.
  template <int Words>
  void search(Search<Words>& search, int64_t block, int64_t pitch, uint8_t* hops) {
    for (int64_t first = (molecule_.atoms - 1) / block * block; first >= 0; first -= block) {
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
  const EdgesByMolecule edges(graphs);
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
      const int64_t pitch = padded < 0 ? ptr[b + 1] - ptr[b] : padded;
      searcher.run(edges, graphs, b, pitch, hops + offset[b]);
    }
  });
}

}  // namespace collamo::cpu
