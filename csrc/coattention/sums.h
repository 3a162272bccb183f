// Sums over tasks, in the same order for any number of threads.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../tasks.h"

namespace collamo::cpu {

// Private copies [slots, R, H↑] of a table's gradient rows [R, H], which start as zeros. Where the
// heads fill whole vectors, the rows themselves are the first slot.
class TableSlots {
 public:
  TableSlots(float* rows, int64_t slots, int64_t count, int64_t heads, int64_t line)
      : rows_(rows),
        count_(rows ? count : 0),
        heads_(heads),
        line_(line),
        first_(heads == line),
        slots_(slots),
        own_(count_ * line * (slots - first_), true) {}

  float* at(int64_t slot) const {
    if (!rows_) return nullptr;
    return slot < first_ ? rows_ : own_.get() + (slot - first_) * count_ * line_;
  }

  // Adds all slots to the rows, in order.
  void sum() const {
    torch::stable::parallel_for(0, count_, 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t slot = first_; slot < slots_; ++slot) {
          const float* from = at(slot) + row * line_;
          for (int64_t head = 0; head < heads_; ++head) rows_[row * heads_ + head] += from[head];
        }
      }
    });
  }

 private:
  float* rows_;
  int64_t count_, heads_, line_, first_, slots_;
  Floats own_;
};

// Adds private gradients [R, line] of a bundle of heads to the rows [R, H], in the order of their
// slots, whichever is done first. One that comes early is kept until its turn.
class OrderedSum {
 public:
  OrderedSum(float* rows, int64_t count, int64_t heads, int64_t line, int64_t bundles)
      : rows_(rows), count_(rows ? count : 0), heads_(heads), line_(line), next_(bundles) {}

  // Size of one private gradient.
  int64_t floats() const { return count_ * line_; }

  void add(int64_t bundle, int64_t slot, const float* own) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t& next = next_[bundle];
    if (slot > next) {
      Floats kept(floats());
      std::copy_n(own, floats(), kept.get());
      early_.emplace(std::pair{bundle, slot}, std::move(kept));
      return;
    }
    add_to_rows(bundle, own), ++next;
    for (auto at = early_.end(); (at = early_.find({bundle, next})) != early_.end(); ++next) {
      add_to_rows(bundle, at->second.get());
      early_.erase(at);
    }
  }

 private:
  void add_to_rows(int64_t bundle, const float* own) {
    const int64_t first = bundle * line_, heads = std::min(line_, heads_ - first);
    for (int64_t row = 0; row < count_; ++row) {
      float* to = rows_ + row * heads_ + first;
      for (int64_t head = 0; head < heads; ++head) to[head] += own[row * line_ + head];
    }
  }

  float* rows_;
  int64_t count_, heads_, line_;
  std::vector<int64_t> next_;  // each bundle's slot whose turn it is
  std::map<std::pair<int64_t, int64_t>, Floats> early_;
  std::mutex mutex_;
};

}  // namespace collamo::cpu
