// Matrix products, lane by lane.

#pragma once

#include "../simd.h"

namespace collamo::cpu {
namespace {

// A matrix of vectors: element (i, j) is at data + i·row + j·column.
struct Matrix {
  float* data;
  int64_t row, column;

  float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

Matrix matrix(float* data, int64_t columns) { return {data, columns * W, W}; }
Matrix transposed(Matrix m) { return {m.data, m.column, m.row}; }
Matrix from_row(Matrix m, int64_t i) { return {m.at(i, 0), m.row, m.column}; }
Matrix from_column(Matrix m, int64_t j) { return {m.at(0, j), m.row, m.column}; }

// Accumulators, one row of y and one element of x must fit the registers: 12 + 3 + 1 of 16.
constexpr int kRows = 4;
constexpr int kColumns = W == 16 ? 6 : 3;

// Terms in one sum, before sums are summed: that halves the rounding of a head of 128.
constexpr int64_t kTerms = 32;

// c[0:Rows, 0:Columns] (+)= Σ_k x[:, k] y[k, :], a block that stays in registers.
template <int Rows, int Columns>
inline void multiply_block(Matrix c, Matrix x, Matrix y, int64_t inner, bool add) {
  const float* left = x.data;
  const float* right = y.data;
  for (int64_t done = 0; done < inner || (done == 0 && !add); done += kTerms, add = true) {
    Vec sum[Rows][Columns] = {};
    const int64_t end = done + kTerms < inner ? done + kTerms : inner;
    for (int64_t k = done; k < end; ++k, left += x.column, right += y.row) {
      Vec b[Columns];
      for (int j = 0; j < Columns; ++j) b[j] = load(right + j * y.column);
      for (int i = 0; i < Rows; ++i) {
        const Vec a = load(left + i * x.row);
        for (int j = 0; j < Columns; ++j) sum[i][j] += a * b[j];
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Columns; ++j) {
        store(c.at(i, j), add ? load(c.at(i, j)) + sum[i][j] : sum[i][j]);
      }
    }
  }
}

template <int Columns>
inline void multiply_panel(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner, bool add) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    multiply_block<kRows, Columns>(from_row(c, i), from_row(x, i), y, inner, add);
  }
  c = from_row(c, i), x = from_row(x, i);
  if (rows - i == 3) multiply_block<3, Columns>(c, x, y, inner, add);
  if (rows - i == 2) multiply_block<2, Columns>(c, x, y, inner, add);
  if (rows - i == 1) multiply_block<1, Columns>(c, x, y, inner, add);
}

template <int Columns>
inline int64_t multiply_panels(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner,
                               int64_t columns, int64_t j, bool add) {
  for (; j + Columns <= columns; j += Columns) {
    multiply_panel<Columns>(from_column(c, j), x, from_column(y, j), rows, inner, add);
  }
  return j;
}

// c [rows, columns] = x [rows, inner] y [inner, columns], or added to c. A panel of y stays in L1.
void multiply(Matrix c, Matrix x, Matrix y, int64_t rows, int64_t inner, int64_t columns,
              bool add) {
  int64_t j = multiply_panels<kColumns>(c, x, y, rows, inner, columns, 0, add);
  if (kColumns > 3) j = multiply_panels<3>(c, x, y, rows, inner, columns, j, add);
  j = multiply_panels<2>(c, x, y, rows, inner, columns, j, add);
  multiply_panels<1>(c, x, y, rows, inner, columns, j, add);
}

}  // namespace
}  // namespace collamo::cpu
