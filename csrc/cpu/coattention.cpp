// Which instruction set runs the attention, and which task does what.
//
// Work is cut into tasks by the input alone, and threads take the next one from a counter: any
// number of threads gives the same bits. Nothing here is larger than the inputs: a thread's scratch
// memory grows with the atoms of the largest molecule.

#include "coattention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "tasks.h"

namespace collamo::cpu {

namespace baseline {
extern const Kernels kernels;
}
#ifdef COLLAMO_WITH_X86
namespace avx2_narrow {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

// Widest first.
std::vector<const Kernels*> kernels_of_this_processor() {
  std::vector<const Kernels*> found;
#ifdef COLLAMO_WITH_X86
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    found.push_back(&avx512::kernels);
  }
  if (fma) found.insert(found.end(), {&avx2::kernels, &avx2_narrow::kernels});
#endif
  found.push_back(&baseline::kernels);
  return found;
}

// The same from the one on that COLLAMO_CPU_CAPABILITY names.
std::vector<const Kernels*> allowed_kernels() {
  std::vector<const Kernels*> found = kernels_of_this_processor();
  const char* asked = std::getenv("COLLAMO_CPU_CAPABILITY");
  const auto first = std::find_if(found.begin(), found.end(), [&](const Kernels* kernels) {
    return asked && std::strcmp(asked, kernels->name) == 0;
  });
  if (first != found.end()) found.erase(found.begin(), first);
  return found;
}

const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> allowed = allowed_kernels();
  return allowed;
}

}  // namespace

const Kernels& kernels() { return *all_kernels().front(); }

const Kernels& kernels(int64_t heads) {
  const Kernels* chosen = &kernels();
  for (const Kernels* narrower : all_kernels()) {
    if (narrower->width >= heads && narrower->width < chosen->width) chosen = narrower;
  }
  return *chosen;
}

namespace {

// rows [R, H] → [R, H↑], the lanes of absent heads 0.
Floats whole_vectors(const float* rows, int64_t count, int64_t heads, int64_t line) {
  Floats padded(count * line);
  for (int64_t row = 0; row < count; ++row) {
    float* to = padded.get() + row * line;
    std::copy_n(rows + row * heads, heads, to);
    std::fill(to + heads, to + line, 0.0f);
  }
  return padded;
}

// Private copies [slots, R, H↑] of a table's gradient rows [R, H], which are zeros at first. They
// are the first slot themselves where the heads fill whole vectors.
class Slots {
 public:
  Slots(float* rows, int64_t slots, int64_t count, int64_t heads, int64_t line)
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

  // Adds all slots up in rows, in order.
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

// Adds private gradients [R, line] of a bundle of heads up in rows [R, H], in the order of their
// slots whichever is done first. Only one that comes too early is kept until its turn.
class OrderedSum {
 public:
  OrderedSum(float* rows, int64_t count, int64_t heads, int64_t line, int64_t bundles)
      : rows_(rows), count_(rows ? count : 0), heads_(heads), line_(line), next_(bundles) {}

  // Of one private gradient.
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
  std::vector<int64_t> next_;  // slot of each bundle whose turn it is
  std::map<std::pair<int64_t, int64_t>, Floats> early_;
  std::mutex mutex_;
};

}  // namespace

// --- the tables of a call ------------------------------------------------------------------------

struct Attention::Tables {
  Floats hop_rows, radial_rows, slope_rows, cells, width;
  std::array<int32_t, 256> hop_start;
};

Attention::Attention(const Call& call, std::vector<Molecule> molecules, double low, double block)
    : kernels_(kernels(call.heads)), call_(call), molecules_(std::move(molecules)) {
  const int64_t width = kernels_.width;
  call_.groups = (call.heads + width - 1) / width;
  const int64_t line = call_.groups * width, knots = 2 * call.table.knots;
  // Copies only where the heads do not fill whole vectors.
  const auto rounded_up = [&](const float* rows, int64_t count) {
    return whole_vectors(rows, rows && line > call.heads ? count : 0, call.heads, line);
  };
  tables_.reset(new Tables{rounded_up(call.hop_rows, call.hop_buckets),
                           rounded_up(call.table.rows, knots),
                           rounded_up(call.table.slope_rows, knots),
                           Floats(call.table.blocks),
                           Floats(call.table.blocks),
                           {}});
  if (line > call.heads) {
    if (call.hop_rows) call_.hop_rows = tables_->hop_rows.get();
    if (call.table.rows) call_.table.rows = tables_->radial_rows.get();
    if (call.table.slope_rows) call_.table.slope_rows = tables_->slope_rows.get();
  }
  call_.hop_start = tables_->hop_start.data();
  for (int64_t hops = 0; call.hop_rows && hops < 256; ++hops) {
    const int64_t unreachable = call.hop_buckets - 1;
    const int64_t bucket = hops == 255 ? unreachable : std::min(hops, unreachable - 1);
    tables_->hop_start[hops] = static_cast<int32_t>(bucket * line);
  }
  if (!call.table.rows) return;
  for (int64_t m = 0; m < call.table.blocks; ++m) {
    const int32_t cells = call.table.first[m + 1] - call.table.first[m];
    tables_->cells.get()[m] = static_cast<float>(cells);
    tables_->width.get()[m] = static_cast<float>(block / cells);
  }
  call_.table.cells = tables_->cells.get();
  call_.table.width = tables_->width.get();
  call_.table.start = static_cast<float>(low / block);
  call_.table.per_block = static_cast<float>(1 / block);
}

Attention::~Attention() = default;

// --- tasks ---------------------------------------------------------------------------------------

namespace {

// A task has all groups of heads, which share what depends on pairs alone, unless there would be
// fewer tasks than this: then each group is a task of its own.
constexpr int64_t kEnoughTasks = 8;

int64_t groups_per_task(int64_t tasks, int64_t groups) {
  return tasks < kEnoughTasks ? 1 : std::max<int64_t>(groups, 1);
}

}  // namespace

// --- forward -------------------------------------------------------------------------------------

namespace {

// Queries of one task. Only a large molecule is cut: each piece reads all keys and values anew.
constexpr int64_t kQueriesPerTask = 128;

}  // namespace

void Attention::forward() const {
  const int64_t step = groups_per_task(static_cast<int64_t>(molecules_.size()), call_.groups);
  std::vector<ForwardTask> tasks;
  for (const Molecule& m : molecules_) {
    for (int64_t group = 0; group < call_.groups; group += step) {
      int64_t first = 0;
      do {  // once for a molecule without atoms too: it may have padding to zero
        const int64_t last = std::min(first + kQueriesPerTask, m.atoms);
        tasks.push_back({&m, group, group + step, first, last});
        first = last;
      } while (first < m.atoms);
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) {
    return (a.last - a.first) * a.molecule->atoms > (b.last - b.first) * b.molecule->atoms;
  });
  int64_t floats = 0;  // not that of the largest molecule: tiles of a smaller one can be larger
  for (const ForwardTask& task : tasks) {
    floats = std::max(floats, kernels_.forward_scratch(call_, task));
  }
  run_tasks(static_cast<int64_t>(tasks.size()), floats,
            [&](int64_t i, float* scratch) { kernels_.forward(call_, tasks[i], scratch); });
}

// --- backward ------------------------------------------------------------------------------------

namespace {

constexpr int64_t kPairsPerSlot = 16384;  // ≈ 3 ms of work, 50 times what clearing and summing cost
constexpr int64_t kMostSlots = 16;        // private copies of the tables' gradients
constexpr int64_t kMostParts = 4;         // of a large molecule, each with a private dq
constexpr int64_t kKeysPerPart = 128;

// Keys first … last - 1 of a molecule, done by one task per group.
struct Piece {
  const Molecule* molecule;
  int64_t first, last, part, parts;
  int64_t coordinates;  // where the piece's private gradient of its atoms starts, in floats
  int64_t q;            // that of dq, in atoms; -1 if the piece is the whole molecule
};

struct Plan {
  std::vector<Piece> pieces;
  std::vector<int64_t> slot;  // pieces slot[s] … slot[s + 1] - 1 share a slot
  int64_t coordinates = 0, q_atoms = 0;
};

int64_t parts_of(const Molecule& m) {
  return std::clamp<int64_t>((m.atoms + kKeysPerPart - 1) / kKeysPerPart, 1, kMostParts);
}

Plan make_plan(const Kernels& kernels, const std::vector<Molecule>& molecules) {
  Plan plan;
  int64_t total = 0;
  for (const Molecule& m : molecules) total += m.atoms * m.atoms;
  const int64_t slots = std::clamp<int64_t>(total / kPairsPerSlot, 1, kMostSlots);
  plan.slot.push_back(0);
  int64_t done = 0;
  for (const Molecule& m : molecules) {
    const int64_t parts = parts_of(m);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = m.atoms * part / parts, last = m.atoms * (part + 1) / parts;
      plan.pieces.push_back(
          {&m, first, last, part, parts, plan.coordinates, parts > 1 ? plan.q_atoms : -1});
      plan.coordinates += 3 * kernels.atoms_row(m.atoms);
      if (parts > 1) plan.q_atoms += m.atoms;
      done += m.atoms * (last - first);
      const int64_t filled = static_cast<int64_t>(plan.slot.size());
      if (done * slots >= total * filled && filled < slots) {
        plan.slot.push_back(static_cast<int64_t>(plan.pieces.size()));
      }
    }
  }
  plan.slot.push_back(static_cast<int64_t>(plan.pieces.size()));
  return plan;
}

// Private gradients of the slots, and of the groups in them, empty where they are not wanted.
struct Private {
  Slots hop_rows;
  Floats affine, coordinates, q;
};

void sum_coordinates(const Kernels& kernels, const Plan& plan, int64_t bundles, const Floats& parts,
                     float* coordinates) {
  for (const Piece& piece : plan.pieces) {
    const Molecule& m = *piece.molecule;
    for (int64_t bundle = 0; bundle < bundles; ++bundle) {
      const float* from = parts.get() + bundle * plan.coordinates + piece.coordinates;
      for (int64_t i = 0; i < m.atoms; ++i) {
        float* to = coordinates + 3 * (m.first_atom + m.atom[i]);
        for (int axis = 0; axis < 3; ++axis) {
          to[axis] += from[axis * kernels.atoms_row(m.atoms) + i];
        }
      }
    }
  }
}

}  // namespace

void Attention::backward(const Gradients& gradients, const TableGradients& wanted) const {
  const Plan plan = make_plan(kernels_, molecules_);
  const int64_t width = kernels_.width, groups = call_.groups, line = groups * width;
  const int64_t slots = static_cast<int64_t>(plan.slot.size()) - 1, types = call_.table.types;
  const int64_t step = groups_per_task(slots, groups), bundles = groups / step;
  const Private own{Slots(wanted.hop_rows, slots, call_.hop_buckets, call_.heads, line),
                    Floats(wanted.affine ? slots * bundles * types * 2 : 0, true),
                    Floats(wanted.coordinates ? bundles * plan.coordinates : 0, true),
                    Floats(plan.q_atoms * call_.dim * line)};
  OrderedSum radial_rows(wanted.radial_rows, 2 * call_.table.knots, call_.heads, step * width,
                         bundles);
  const auto q_part = [&](const Piece& piece, int64_t group) {  // [groups, atoms, D, width]
    const int64_t atoms = piece.q * groups + piece.molecule->atoms * group;
    return piece.q < 0 ? nullptr : own.q.get() + atoms * call_.dim * width;
  };
  const auto task_of = [&](const Piece& piece, int64_t slot, int64_t bundle) {
    BackwardTask task{piece.molecule, bundle * step, (bundle + 1) * step, piece.first, piece.last};
    task.hop_rows = own.hop_rows.at(slot);
    if (wanted.affine) task.affine = own.affine.get() + (slot * bundles + bundle) * types * 2;
    if (wanted.coordinates) {
      task.coordinates = own.coordinates.get() + bundle * plan.coordinates + piece.coordinates;
    }
    task.q = q_part(piece, task.first_group);
    return task;
  };
  int64_t floats = 0;
  for (const Piece& piece : plan.pieces) {
    floats = std::max(floats, kernels_.backward_scratch(call_, gradients, task_of(piece, 0, 0)));
  }
  run_tasks(slots * bundles, radial_rows.floats() + floats, [&](int64_t i, float* memory) {
    const int64_t bundle = i % bundles, slot = i / bundles;
    float* const scratch = memory + radial_rows.floats();
    std::fill(memory, scratch, 0.0f);
    for (int64_t at = plan.slot[slot]; at < plan.slot[slot + 1]; ++at) {
      BackwardTask task = task_of(plan.pieces[at], slot, bundle);
      if (wanted.radial_rows) task.radial_rows = memory;
      kernels_.backward(call_, gradients, task, scratch);
    }
    if (wanted.radial_rows) radial_rows.add(bundle, slot, memory);
  });
  const int64_t cut = plan.q_atoms > 0 ? static_cast<int64_t>(plan.pieces.size()) : 0;
  run_tasks(cut * groups, 0, [&](int64_t i, float*) {
    const Piece* piece = &plan.pieces[i / groups];
    if (piece->q < 0 || piece->part > 0) return;
    float* parts[kMostParts];
    for (int64_t part = 0; part < piece->parts; ++part) {
      parts[part] = q_part(piece[part], i % groups);
    }
    kernels_.write_query_gradient(call_, gradients, *piece->molecule, i % groups, parts,
                                  piece->parts);
  });
  own.hop_rows.sum();
  if (wanted.coordinates)
    sum_coordinates(kernels_, plan, bundles, own.coordinates, wanted.coordinates);
  for (int64_t i = 0; wanted.affine && i < slots * bundles; ++i) {
    for (int64_t at = 0; at < 2 * types; ++at) {
      wanted.affine[at] += own.affine.get()[i * types * 2 + at];
    }
  }
}

}  // namespace collamo::cpu
