// Cuts the attention into tasks, and chooses the instruction set that runs them.
//
// Work is cut into tasks by the input alone, and threads take the next one from a counter: any
// number of threads gives the same bits. Nothing here is larger than the inputs: a thread's scratch
// memory grows with the number of atoms in the largest molecule.

#include "cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "../capability.h"
#include "../tasks.h"
#include "sums.h"

namespace collamo::cpu {

COLLAMO_DECLARE_TABLES(Kernels, attention_kernels)

namespace {

// The kernels whose vectors are just wide enough for so many heads, the widest for more: heads are
// the lanes, and a lane without a head is work for nothing. With 4 heads of 24 and 598 atoms a
// forward and a backward pass took 4.1 ms with vectors of 16, 2.5 with 8 and 1.6 with 4 (Zen 4, one
// thread).
const Kernels& kernels_for(int64_t heads) {
  static const std::vector<const Kernels*> tables = runnable<Kernels>({
#ifdef COLLAMO_WITH_X86
      &avx512::attention_kernels, &avx2::attention_kernels, &avx2_narrow::attention_kernels,
#endif
      &baseline::attention_kernels});
  const Kernels* chosen = tables.front();
  for (const Kernels* narrower : tables) {
    if (narrower->width >= heads && narrower->width < chosen->width) chosen = narrower;
  }
  return *chosen;
}

// rows [R, H] → [R, H↑], with 0 in the lanes of absent heads.
Floats whole_vectors(const float* rows, int64_t count, int64_t heads, int64_t line) {
  Floats padded(count * line);
  for (int64_t row = 0; row < count; ++row) {
    float* to = padded.get() + row * line;
    std::copy_n(rows + row * heads, heads, to);
    std::fill(to + heads, to + line, 0.0f);
  }
  return padded;
}

}  // namespace

// --- the tables of a call ------------------------------------------------------------------------

struct Attention::Tables {
  Floats hop_rows, radial_rows, slope_rows, sink, cells, width;
  std::array<int32_t, 256> hop_start;
};

Attention::Attention(const Call& call, std::vector<Molecule> molecules, double low, double block)
    : kernels_(kernels_for(call.heads)), call_(call), molecules_(std::move(molecules)) {
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
                           rounded_up(call.sink, 1),
                           Floats(call.table.blocks),
                           Floats(call.table.blocks),
                           {}});
  if (line > call.heads) {
    if (call.hop_rows) call_.hop_rows = tables_->hop_rows.get();
    if (call.table.rows) call_.table.rows = tables_->radial_rows.get();
    if (call.table.slope_rows) call_.table.slope_rows = tables_->slope_rows.get();
    if (call.sink) call_.sink = tables_->sink.get();
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

// A task has all groups of heads, because they share what depends on pairs alone. If that makes
// fewer tasks than this, each group is a task of its own.
constexpr int64_t kEnoughTasks = 8;

int64_t groups_per_task(int64_t tasks, int64_t groups) {
  return tasks < kEnoughTasks ? 1 : std::max<int64_t>(groups, 1);
}

}  // namespace

// --- forward -------------------------------------------------------------------------------------

namespace {

// Queries in a task. Only a large molecule is cut, as every piece reads all keys and values again.
constexpr int64_t kQueriesPerTask = 128;

}  // namespace

void Attention::forward() const {
  const int64_t step = groups_per_task(static_cast<int64_t>(molecules_.size()), call_.groups);
  std::vector<ForwardTask> tasks;
  for (const Molecule& m : molecules_) {
    for (int64_t group = 0; group < call_.groups; group += step) {
      int64_t first = 0;
      do {  // at least once: a molecule without atoms may have padding to zero
        const int64_t last = std::min(first + kQueriesPerTask, m.atoms);
        tasks.push_back({&m, group, group + step, first, last});
        first = last;
      } while (first < m.atoms);
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) {
    return (a.last - a.first) * a.molecule->atoms > (b.last - b.first) * b.molecule->atoms;
  });
  int64_t floats = 0;  // a smaller molecule can have larger tiles, so ask for every task
  for (const ForwardTask& task : tasks) {
    floats = std::max(floats, kernels_.forward_scratch(call_, task));
  }
  run_tasks(static_cast<int64_t>(tasks.size()), floats,
            [&](int64_t i, float* scratch) { kernels_.forward(call_, tasks[i], scratch); });
}

// --- backward ------------------------------------------------------------------------------------

namespace {

constexpr int64_t kPairsPerSlot =
    16384;                          // ≈ 3 ms of work, 50 times the cost of clearing and summing
constexpr int64_t kMostSlots = 16;  // private copies of the tables' gradients
constexpr int64_t kMostParts = 4;   // of a large molecule, each with a private dq
constexpr int64_t kKeysPerPart = 128;

// Keys first … last - 1 of a molecule, done by one task per group.
struct Piece {
  const Molecule* molecule;
  int64_t first, last, part, parts;
  int64_t coordinates;  // where its private gradient of coordinates starts, in floats
  int64_t q;            // where its private dq starts, in atoms; -1 if it is a whole molecule
};

struct BackwardPlan {
  std::vector<Piece> pieces;
  std::vector<int64_t> slot;  // pieces slot[s] … slot[s + 1] - 1 share a slot
  int64_t coordinates = 0, q_atoms = 0;
};

int64_t parts_of(const Molecule& m) {
  return std::clamp<int64_t>((m.atoms + kKeysPerPart - 1) / kKeysPerPart, 1, kMostParts);
}

BackwardPlan plan_backward(const Kernels& kernels, const std::vector<Molecule>& molecules) {
  BackwardPlan plan;
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

// Private gradients of the slots, and of the groups in them, empty where nobody asked for them.
struct Private {
  TableSlots hop_rows, sink;
  Floats affine, coordinates, q;
};

void sum_coordinates(const Kernels& kernels, const BackwardPlan& plan, int64_t bundles,
                     const Floats& parts, float* coordinates) {
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

void sum_affine(const Floats& parts, int64_t count, int64_t numbers, float* affine) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t at = 0; at < numbers; ++at) affine[at] += parts.get()[i * numbers + at];
  }
}

// Of molecules in several pieces, each of which has its own q_part(piece, group).
template <typename QPart>
void write_query_gradients(const Kernels& kernels, const Call& call, const Gradients& gradients,
                           const BackwardPlan& plan, const QPart& q_part) {
  const int64_t cut = plan.q_atoms > 0 ? static_cast<int64_t>(plan.pieces.size()) : 0;
  run_tasks(cut * call.groups, 0, [&](int64_t i, float*) {
    const Piece* piece = &plan.pieces[i / call.groups];
    const int64_t group = i % call.groups;
    if (piece->q < 0 || piece->part > 0) return;
    float* parts[kMostParts];
    for (int64_t part = 0; part < piece->parts; ++part) parts[part] = q_part(piece[part], group);
    kernels.write_query_gradient(call, gradients, *piece->molecule, group, parts, piece->parts);
  });
}

}  // namespace

void Attention::backward(const Gradients& gradients, const TableGradients& tables) const {
  const BackwardPlan plan = plan_backward(kernels_, molecules_);
  const int64_t width = kernels_.width, groups = call_.groups, line = groups * width;
  const int64_t slots = static_cast<int64_t>(plan.slot.size()) - 1, types = call_.table.types;
  const int64_t step = groups_per_task(slots, groups), bundles = groups / step;
  const Private own{TableSlots(tables.hop_rows, slots, call_.hop_buckets, call_.heads, line),
                    TableSlots(tables.sink, slots, 1, call_.heads, line),
                    Floats(tables.affine ? slots * bundles * types * 2 : 0, true),
                    Floats(tables.coordinates ? bundles * plan.coordinates : 0, true),
                    Floats(plan.q_atoms * call_.dim * line)};
  OrderedSum radial_rows(tables.radial_rows, 2 * call_.table.knots, call_.heads, step * width,
                         bundles);
  const auto q_part = [&](const Piece& piece, int64_t group) {  // [groups, atoms, D, width]
    const int64_t atoms = piece.q * groups + piece.molecule->atoms * group;
    return piece.q < 0 ? nullptr : own.q.get() + atoms * call_.dim * width;
  };
  const auto task_of = [&](const Piece& piece, int64_t slot, int64_t bundle) {
    BackwardTask task{piece.molecule, bundle * step, (bundle + 1) * step, piece.first, piece.last};
    task.hop_rows = own.hop_rows.at(slot);
    if (tables.affine) task.affine = own.affine.get() + (slot * bundles + bundle) * types * 2;
    if (tables.coordinates) {
      task.coordinates = own.coordinates.get() + bundle * plan.coordinates + piece.coordinates;
    }
    if (piece.part == 0) task.sink = own.sink.at(slot);  // it has all rows of the molecule
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
      if (tables.radial_rows) task.radial_rows = memory;
      kernels_.backward(call_, gradients, task, scratch);
    }
    if (tables.radial_rows) radial_rows.add(bundle, slot, memory);
  });
  write_query_gradients(kernels_, call_, gradients, plan, q_part);
  own.hop_rows.sum();
  own.sink.sum();
  if (tables.coordinates) {
    sum_coordinates(kernels_, plan, bundles, own.coordinates, tables.coordinates);
  }
  if (tables.affine) sum_affine(own.affine, slots * bundles, 2 * types, tables.affine);
}

}  // namespace collamo::cpu
