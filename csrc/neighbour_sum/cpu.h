#pragma once

#include <cstdint>

namespace collamo::cpu {

// Edges sorted by the node they lead to: those of node i are ptr[i] to ptr[i + 1]. `source` is a
// row of x, `kind` a row of `table`.
struct SortedEdges {
  const int64_t* source;
  const int64_t* kind;
  const int64_t* ptr;  // [nodes + 1]
  int64_t count;
  int64_t nodes;
};

// x [rows, channels] and the vectors of the kinds of edges, table [kinds, channels].
struct Rows {
  const float* x;
  const float* table;
  int64_t rows;
  int64_t kinds;
  int64_t channels;
  bool relu;
};

// out[i] = scale · x[receiver[i]] + Σ_e relu(x[source[e]] + table[kind[e]]) of the edges e into
// node i, [nodes, channels]. Without `relu` the sum is of the bare terms; null `receiver` is i
// itself, null `scale` leaves the first term out.
void neighbour_sum(const SortedEdges& edges, const Rows& rows, const int64_t* receiver,
                   const float* scale, float* out);

// For dL/dout `grad` the gradients of the sum over edges: of x [rows, channels] and of the table
// [kinds, channels].
void neighbour_sum_backward(const SortedEdges& edges, const Rows& rows, const float* grad,
                            float* dx, float* dtable);

}  // namespace collamo::cpu
