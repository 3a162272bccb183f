#pragma once

#include <memory>
#include <vector>

#include "kernel.h"

namespace collamo::cpu {

// Where the sums over all pairs are added; nullptr if nobody asked for them.
struct TableGradients {
  float* hop_rows;     // [S, H]
  float* radial_rows;  // [G, 2, H]
  float* affine;       // [types, 2]
  float* coordinates;  // [atoms of the batch, 3]
  float* sink;         // [H]
};

// A call with its tables laid out for the kernels.
class Attention {
 public:
  // `call` has hop_rows [S, H], table.rows [G, 2, H] and sink [H], but no cells and no width yet.
  Attention(const Call& call, std::vector<Molecule> molecules, double low, double block);
  ~Attention();

  // Writes call.out and, for real atoms, call.row_max and call.inverse_sum.
  void forward() const;

  // Writes the gradients of q, k and v, and, where there is a place for them, of phi, bias and the
  // tables. Rows of phi and elements of bias that belong to no real pair are left alone.
  void backward(const Gradients& gradients, const TableGradients& tables) const;

 private:
  struct Tables;

  const Kernels& kernels_;
  Call call_;
  std::vector<Molecule> molecules_;
  std::unique_ptr<Tables> tables_;
};

}  // namespace collamo::cpu
