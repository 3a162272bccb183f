// The CUDA kernels on the host, for tests to call through ctypes.

#include "relations/cuda.cu"
#include "shortest_paths/cuda.cu"

namespace {

constexpr int kGuard = 64;               // bytes behind every array, and between the device's
constexpr unsigned char kPoison = 0xa5;  // of what nobody has written

// Memory of the emulated device: poisoned, with a guard behind it.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t count) : bytes_(count * sizeof(T)), data_(bytes_ + kGuard, kPoison) {}
  T* data() { return reinterpret_cast<T*>(data_.data()); }
  bool intact() const {
    return std::all_of(data_.begin() + bytes_, data_.end(),
                       [](unsigned char x) { return x == kPoison; });
  }

 private:
  size_t bytes_;
  std::vector<unsigned char> data_;
};

}  // namespace

// Returns the number of bytes of `hops` that were due, -1 if the survey refused the batch, or -2 if
// something was written out of bounds. captured: go on without what the survey found.
extern "C" int64_t emulated_shortest_paths(const int64_t* edge_index, int64_t edges,
                                           const int64_t* ptr, int64_t molecules, int64_t padded,
                                           int64_t pairs, bool captured, uint8_t* hops) {
  using namespace collamo;
  using namespace collamo::cuda;
  const Graphs graphs = {edge_index, edge_index + edges, edges, ptr, molecules};
  const Limits limits = {padded < 0 ? kMaxAtoms : padded, pairs};
  Memory<int64_t> words(survey_words(graphs));
  survey(graphs, limits, captured, words.data(), nullptr);
  Survey found = worst_case(graphs, limits);
  if (!captured) read_survey(graphs, words.data(), &found, nullptr);
  if (!words.intact()) return -2;
  if (found.wrong) return -1;
  Memory<int64_t> scratch(scratch_words(found));
  search(graphs, found, padded, words.data(), scratch.data(), hops, nullptr);
  if (!words.intact() || !scratch.intact()) return -2;
  return padded < 0 ? found.pairs : molecules * padded * padded;
}

extern "C" bool emulated_sort_pairs(const uint8_t* hops, const uint8_t* real, int64_t pairs,
                                    int64_t* order, void* keys, int64_t* starts) {
  using namespace collamo::cuda;
  Memory<int64_t> words(sort_words(pairs));
  sort_pairs(hops, real, pairs, words.data(), order, keys, starts, nullptr);
  return words.intact();
}
