// Sums over the neighbours of a node, and their gradients.
//
// A row of a result belongs to one task and takes its edges in their order, so that sums have
// one order for any number of threads. A row of 300 channels stays in the first cache while
// its edges are added to it.

#include "cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../clones.h"

namespace collamo::cpu {
namespace {

constexpr int64_t kNumbersPerTask = 16384;  // read from rows: some microseconds
constexpr int64_t kChannelsPerTask = 64;    // of a table, which has few rows with many edges each

COLLAMO_ALSO_AVX2
void scale_row(const float* x, float scale, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = scale * x[c];
}

COLLAMO_ALSO_AVX2
void add_message(const float* x, const float* edge, bool relu, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; ++c) {
    const float message = x[c] + edge[c];
    out[c] += relu && message < 0 ? 0 : message;  // keeps NaN
  }
}

COLLAMO_ALSO_AVX2
void add_gradient(const float* x, const float* edge, const float* grad, bool relu, int64_t channels,
                  float* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] += relu && x[c] + edge[c] <= 0 ? 0 : grad[c];
}

// Edges grouped by the row that `key` gives, in a stable order.
struct Groups {
  std::vector<int64_t> order, ptr;

  Groups(const int64_t* key, int64_t count, int64_t rows) : order(count), ptr(rows + 1) {
    for (int64_t e = 0; e < count; ++e) ++ptr[key[e] + 1];
    for (int64_t row = 0; row < rows; ++row) ptr[row + 1] += ptr[row];
    std::vector<int64_t> next(ptr.begin(), ptr.end() - 1);
    for (int64_t e = 0; e < count; ++e) order[next[key[e]]++] = e;
  }
};

int64_t rows_per_task(int64_t rows, int64_t edges, int64_t channels) {
  const int64_t numbers = (edges / std::max<int64_t>(rows, 1) + 1) * channels;
  return std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(numbers, 1));
}

}  // namespace

void neighbour_sum(const SortedEdges& edges, const Rows& rows, const int64_t* receiver,
                   const float* scale, float* out) {
  const int64_t channels = rows.channels;
  const int64_t grain = rows_per_task(edges.nodes, edges.count, channels);
  torch::stable::parallel_for(0, edges.nodes, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* sum = out + i * channels;
      if (scale) {
        scale_row(rows.x + (receiver ? receiver[i] : i) * channels, *scale, channels, sum);
      } else {
        std::fill_n(sum, channels, 0.0f);
      }
      for (int64_t e = edges.ptr[i]; e < edges.ptr[i + 1]; ++e) {
        add_message(rows.x + edges.source[e] * channels, rows.table + edges.kind[e] * channels,
                    rows.relu, channels, sum);
      }
    }
  });
}

void neighbour_sum_backward(const SortedEdges& edges, const Rows& rows, const float* grad,
                            float* dx, float* dtable) {
  const int64_t channels = rows.channels;
  std::vector<int64_t> target(edges.count);
  for (int64_t i = 0; i < edges.nodes; ++i) {
    std::fill(target.begin() + edges.ptr[i], target.begin() + edges.ptr[i + 1], i);
  }
  const auto add_up = [&](const Groups& groups, int64_t row, int64_t first, int64_t last,
                          float* out) {
    float* sum = out + row * channels + first;
    std::fill_n(sum, last - first, 0.0f);
    for (int64_t at = groups.ptr[row]; at < groups.ptr[row + 1]; ++at) {
      const int64_t e = groups.order[at];
      add_gradient(rows.x + edges.source[e] * channels + first,
                   rows.table + edges.kind[e] * channels + first,
                   grad + target[e] * channels + first, rows.relu, last - first, sum);
    }
  };
  const Groups by_source(edges.source, edges.count, rows.rows);
  const int64_t grain = rows_per_task(rows.rows, edges.count, channels);
  torch::stable::parallel_for(0, rows.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) add_up(by_source, row, 0, channels, dx);
  });
  const Groups by_kind(edges.kind, edges.count, rows.kinds);
  const int64_t pieces = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kChannelsPerTask;
    const int64_t last = std::min(channels, end * kChannelsPerTask);
    for (int64_t kind = 0; kind < rows.kinds; ++kind) add_up(by_kind, kind, first, last, dtable);
  });
}

}  // namespace collamo::cpu
