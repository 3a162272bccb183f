// Which instruction set runs the attention, and which task does what.
//
// Work is cut into tasks by the input alone, and threads take the next one from a counter: any
// number of threads gives the same bits. Nothing here is larger than the inputs: a thread's scratch
// memory grows with the atoms of the largest molecule.

#include "coattention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tasks.h"

namespace collamo::cpu {

namespace baseline {
extern const Kernels kernels;
}
#ifdef COLLAMO_WITH_X86
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
  if (fma) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> found = kernels_of_this_processor();
  const char* asked = std::getenv("COLLAMO_CPU_CAPABILITY");
  for (const Kernels* kernels : found) {
    if (asked && std::strcmp(asked, kernels->name) == 0) return *kernels;
  }
  return *found.front();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

namespace {

// rows [R, H] → [groups, R, width], the lanes of absent heads 0.
Floats by_group(const float* rows, int64_t count, int64_t heads, int64_t groups, int64_t width) {
  Floats grouped(groups * count * width);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t lanes = std::min(width, heads - group * width);
    for (int64_t row = 0; row < count; ++row) {
      float* to = grouped.get() + (group * count + row) * width;
      std::copy_n(rows + row * heads + group * width, lanes, to);
      std::fill(to + lanes, to + width, 0.0f);
    }
  }
  return grouped;
}

// The same sum back: rows [R, H] = Σ over slots of grouped [slots, groups, R, width]. Lane by lane,
// so that the compiler makes vectors of it.
void sum_slots(const Floats& grouped, int64_t slots, const Call& call, int64_t count, int64_t width,
               float* rows) {
  constexpr int64_t kWidest = 16;
  torch::stable::parallel_for(0, count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * call.groups; i < end * call.groups; ++i) {
      const int64_t row = i / call.groups, group = i % call.groups;
      float sum[kWidest] = {};
      for (int64_t slot = 0; slot < slots; ++slot) {
        const float* from = grouped.get() + ((slot * call.groups + group) * count + row) * width;
        for (int64_t lane = 0; lane < width; ++lane) sum[lane] += from[lane];
      }
      const int64_t head = group * width, lanes = std::min(width, call.heads - head);
      std::copy_n(sum, lanes, rows + row * call.heads + head);
    }
  });
}

}  // namespace

// --- the tables of a call ------------------------------------------------------------------------

struct Attention::Tables {
  Floats hop_rows, radial_rows, slope_rows, cells, width;
};

Attention::Attention(const Call& call, std::vector<Molecule> molecules, double low, double block)
    : call_(call), molecules_(std::move(molecules)) {
  const int64_t width = kernels().width;
  call_.groups = (call.heads + width - 1) / width;
  const auto grouped = [&](const float* rows, int64_t count) {
    return by_group(rows, rows ? count : 0, call.heads, call_.groups, width);
  };
  tables_.reset(new Tables{grouped(call.hop_rows, call.hop_buckets),
                           grouped(call.table.rows, 2 * call.table.knots),
                           grouped(call.table.slope_rows, 2 * call.table.knots),
                           Floats(call.table.blocks), Floats(call.table.blocks)});
  if (call.hop_rows) call_.hop_rows = tables_->hop_rows.get();
  if (!call.table.rows) return;
  call_.table.rows = tables_->radial_rows.get();
  if (call.table.slope_rows) call_.table.slope_rows = tables_->slope_rows.get();
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

// --- forward -------------------------------------------------------------------------------------

namespace {

// Queries of one task. Only a large molecule is cut: each piece reads all keys and values anew.
constexpr int64_t kQueriesPerTask = 128;

}  // namespace

void Attention::forward() const {
  std::vector<ForwardTask> tasks;
  for (const Molecule& m : molecules_) {
    for (int64_t group = 0; group < call_.groups; ++group) {
      int64_t first = 0;
      do {  // once for a molecule without atoms too: it may have padding to zero
        const int64_t last = std::min(first + kQueriesPerTask, m.atoms);
        tasks.push_back({&m, group, first, last});
        first = last;
      } while (first < m.atoms);
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) {
    return (a.last - a.first) * a.molecule->atoms > (b.last - b.first) * b.molecule->atoms;
  });
  int64_t floats = 0;  // not that of the largest molecule: tiles of a smaller one can be larger
  for (const ForwardTask& task : tasks) {
    const int64_t needed =
        kernels().forward_scratch(call_, task.molecule->atoms, task.last - task.first);
    floats = std::max(floats, needed);
  }
  run_tasks(static_cast<int64_t>(tasks.size()), floats,
            [&](int64_t i, float* scratch) { kernels().forward(call_, tasks[i], scratch); });
}

// --- backward ------------------------------------------------------------------------------------

namespace {

constexpr int64_t kPairsPerSlot = 8192;  // ≈ 1 ms of work, 20 times what clearing and summing cost
constexpr int64_t kMostSlots = 16;       // private copies of the tables' gradients
constexpr int64_t kMostParts = 4;        // of a large molecule, each with a private dq
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

Plan make_plan(const std::vector<Molecule>& molecules) {
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
      plan.coordinates += 3 * kernels().atoms_row(m.atoms);
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

// Private gradients of one (slot, group), empty where they are not wanted.
struct Private {
  Floats hop_rows, radial_rows, affine, coordinates, q;
};

void sum_coordinates(const Plan& plan, const Call& call, const Floats& parts, float* coordinates) {
  for (const Piece& piece : plan.pieces) {
    const Molecule& m = *piece.molecule;
    for (int64_t group = 0; group < call.groups; ++group) {
      const float* from = parts.get() + group * plan.coordinates + piece.coordinates;
      for (int64_t i = 0; i < m.atoms; ++i) {
        float* to = coordinates + 3 * (m.first_atom + m.atom[i]);
        for (int axis = 0; axis < 3; ++axis) {
          to[axis] += from[axis * kernels().atoms_row(m.atoms) + i];
        }
      }
    }
  }
}

}  // namespace

void Attention::backward(const Gradients& gradients, const TableGradients& wanted) const {
  const Plan plan = make_plan(molecules_);
  const int64_t width = kernels().width, groups = call_.groups, dim = call_.dim;
  const int64_t slots = static_cast<int64_t>(plan.slot.size()) - 1, types = call_.table.types;
  const int64_t hop_size = wanted.hop_rows ? call_.hop_buckets * width : 0;
  const int64_t radial_size = wanted.radial_rows ? call_.table.knots * 2 * width : 0;
  const Private own{Floats(slots * groups * hop_size, true),
                    Floats(slots * groups * radial_size, true),
                    Floats(wanted.affine ? slots * groups * types * 2 : 0, true),
                    Floats(wanted.coordinates ? groups * plan.coordinates : 0, true),
                    Floats(groups * plan.q_atoms * dim * width)};
  const auto q_part = [&](const Piece& piece, int64_t group) {
    return piece.q < 0 ? nullptr : own.q.get() + (group * plan.q_atoms + piece.q) * dim * width;
  };
  int64_t floats = 0;
  for (const Piece& piece : plan.pieces) {
    const int64_t needed =
        kernels().backward_scratch(call_, piece.molecule->atoms, piece.last - piece.first);
    floats = std::max(floats, needed);
  }
  run_tasks(slots * groups, floats, [&](int64_t i, float* scratch) {
    const int64_t group = i % groups;
    for (int64_t at = plan.slot[i / groups]; at < plan.slot[i / groups + 1]; ++at) {
      const Piece& piece = plan.pieces[at];
      BackwardTask task{piece.molecule, group, piece.first, piece.last};
      if (hop_size) task.hop_rows = own.hop_rows.get() + i * hop_size;
      if (radial_size) task.radial_rows = own.radial_rows.get() + i * radial_size;
      if (wanted.affine) task.affine = own.affine.get() + i * types * 2;
      if (wanted.coordinates) {
        task.coordinates = own.coordinates.get() + group * plan.coordinates + piece.coordinates;
      }
      task.q = q_part(piece, group);
      kernels().backward(call_, gradients, task, scratch);
    }
  });
  run_tasks(static_cast<int64_t>(plan.pieces.size()) * groups, 0, [&](int64_t i, float*) {
    const Piece* piece = &plan.pieces[i / groups];
    if (piece->q < 0 || piece->part > 0) return;
    float* parts[kMostParts];
    for (int64_t part = 0; part < piece->parts; ++part) {
      parts[part] = q_part(piece[part], i % groups);
    }
    kernels().write_query_gradient(call_, gradients, *piece->molecule, i % groups, parts,
                                   piece->parts);
  });
  if (hop_size) {
    sum_slots(own.hop_rows, slots, call_, call_.hop_buckets, width, wanted.hop_rows);
  }
  if (radial_size) {
    sum_slots(own.radial_rows, slots, call_, 2 * call_.table.knots, width, wanted.radial_rows);
  }
  if (wanted.coordinates) sum_coordinates(plan, call_, own.coordinates, wanted.coordinates);
  for (int64_t i = 0; wanted.affine && i < slots * groups; ++i) {
    for (int64_t at = 0; at < 2 * types; ++at) {
      wanted.affine[at] += own.affine.get()[i * types * 2 + at];
    }
  }
}

}  // namespace collamo::cpu
