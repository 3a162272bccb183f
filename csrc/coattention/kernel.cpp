// One task of the attention: a molecule and its heads, forward or backward.
//
// Heads are the lanes: a group has as many as a vector, worked on together. q, k, v of a group are
// laid out [atom, d, head], logits [query, key, head]. Every step is then lane by lane: a matrix
// product needs no padding, softmax no sum across lanes, and a row of a table (hop or knot, all
// heads side by side) is one load that is added to the logits as it is. What depends on the pair
// alone is computed once for all groups. A molecule of 26 atoms fits in L2.
//
// Compiled once per instruction set (setup.py). Includes no header with inline functions that
// another file may share: the linker could pick this file's copy for an older processor.

#include "kernel.h"

#include "backward.h"
#include "forward.h"

namespace collamo::cpu {
namespace {

void forward(const Call& call, const ForwardTask& task, float* memory) {
  Scratch scratch(memory);
  ForwardKernel(call, task, scratch).run();
}

int64_t backward_scratch(const Call& call, const Gradients& gradients, const BackwardTask& task) {
  return BackwardKernel::scratch_floats(call, gradients, task);
}

void backward(const Call& call, const Gradients& gradients, const BackwardTask& task,
              float* memory) {
  Scratch scratch(memory);
  BackwardKernel(call, gradients, task, scratch).run();
}

void write_query_gradient(const Call& call, const Gradients& gradients, const Molecule& m,
                          int64_t group, float* const* parts, int64_t count) {
  const int64_t floats = m.atoms * call.dim * W;
  for (int64_t part = 1; part < count; ++part) {
    for (int64_t at = 0; at < floats; at += W) add_to(parts[0] + at, load(parts[part] + at));
  }
  write(call, gradients.q, m, heads_of(call, group), 0, m.atoms, call.scale, parts[0]);
}

}  // namespace

namespace COLLAMO_CAPABILITY {
extern const Kernels attention_kernels;
const Kernels attention_kernels{kCapability,          W,         forward,         backward,
                                write_query_gradient, atoms_row, forward_scratch, backward_scratch};
}  // namespace COLLAMO_CAPABILITY

}  // namespace collamo::cpu
