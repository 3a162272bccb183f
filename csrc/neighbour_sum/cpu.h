#pragma once

#include <cstdint>

namespace collamo::cpu {

// Edges sorted by the node they lead to: node i has the edges ptr[i] to ptr[i + 1]. `source` is a
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
// node i, [nodes, channels]. Without `relu` the terms are added as they are; without `receiver`
// it is i; without `scale` there is no first term.
void neighbour_sum(const SortedEdges& edges, const Rows& rows, const int64_t* receiver,
                   const float* scale, float* out);

// Writes the gradients of the sum over edges for dL/dout `grad`: of x [rows, channels] and of the
// table [kinds, channels].
void neighbour_sum_backward(const SortedEdges& edges, const Rows& rows, const float* grad,
                            float* dx, float* dtable);

}  // namespace collamo::cpu
