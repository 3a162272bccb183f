// Matrix products with rows of whole vectors.

#pragma once

#include "../simd.h"

namespace collamo::cpu {
namespace {

int64_t whole_vectors(int64_t count) { return (count + W - 1) / W * W; }

// Element (i, j) is at data + i·row + j·column.
struct Left {
  const float* data;
  int64_t row, column;
};

// Accumulators and a row of the right matrix must fit the registers: 24 + 3 + 1 of 32.
constexpr int kRows = W == 16 ? 8 : 4;
constexpr int kColumns = 3;

// Terms in one sum, before sums are summed: without fused multiply-add, 128 terms in a row rounded
// twice as much as PyTorch.
constexpr int64_t kTerms = 32;

// c[0:Rows, 0:Columns·W] (+)= Σ_k x[:, k] y[k, :].
template <int Rows, int Columns>
inline void multiply_block(float* c, int64_t c_row, Left x, const float* y, int64_t y_row,
                           int64_t inner, bool add) {
  for (int64_t done = 0; done < inner; done += kTerms, add = true) {
    Vec sum[Rows][Columns] = {};
    const int64_t end = done + kTerms < inner ? done + kTerms : inner;
    for (int64_t k = done; k < end; ++k, y += y_row) {
      Vec right[Columns];
      for (int j = 0; j < Columns; ++j) right[j] = load(y + j * W);
      for (int i = 0; i < Rows; ++i) {
        const Vec left = broadcast(x.data[i * x.row + k * x.column]);
        for (int j = 0; j < Columns; ++j) sum[i][j] += left * right[j];
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Columns; ++j) {
        float* to = c + i * c_row + j * W;
        store(to, add ? load(to) + sum[i][j] : sum[i][j]);
      }
    }
  }
}

template <int Columns>
inline void multiply_panel(float* c, int64_t c_row, Left x, const float* y, int64_t y_row,
                           int64_t rows, int64_t inner, bool add) {
  int64_t i = 0;
  const auto from = [&](int64_t row) { return Left{x.data + row * x.row, x.row, x.column}; };
  for (; i + kRows <= rows; i += kRows) {
    multiply_block<kRows, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_block<2, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
  }
  if (i < rows) multiply_block<1, Columns>(c + i * c_row, c_row, from(i), y, y_row, inner, add);
}

// c [rows, columns↑] = x [rows, inner] y [inner, columns↑], or added to c. A panel of y stays in
// L1.
void multiply(float* c, Left x, const float* y, int64_t rows, int64_t inner, int64_t columns,
              bool add) {
  const int64_t row = whole_vectors(columns);
  int64_t j = 0;
  for (; j + kColumns * W <= row; j += kColumns * W) {
    multiply_panel<kColumns>(c + j, row, x, y + j, row, rows, inner, add);
  }
  if (j + 2 * W == row) multiply_panel<2>(c + j, row, x, y + j, row, rows, inner, add);
  if (j + W == row) multiply_panel<1>(c + j, row, x, y + j, row, rows, inner, add);
}

}  // namespace
}  // namespace collamo::cpu
