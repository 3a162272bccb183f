// The operators of the radial table on the CPU; collamo_kernels/radial/op.py says what the
// arguments mean.

#pragma once

#include <cstdint>
#include <tuple>

#include "../checks.h"

namespace collamo::cpu::radial {

std::tuple<Tensor, Tensor> radial_rows(const Tensor& u, const Optional& used, const Tensor& centre,
                                       const Tensor& width, const Tensor& weight,
                                       const Tensor& bias, const Optional& weight2,
                                       const Optional& bias2, bool curvature);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> radial_rows_backward(
    const Tensor& grad, const Tensor& u, const Optional& used, const Tensor& centre,
    const Tensor& width, const Tensor& weight, const Tensor& bias, const Optional& weight2,
    const Optional& bias2);

std::tuple<Tensor, Tensor, Tensor, Tensor> radial_grid(
    const Tensor& centre, const Tensor& width, const Tensor& weight, const Tensor& bias,
    const Optional& weight2, const Optional& bias2, const Optional& occurring, double first_place,
    double last_place, double low, double block, int64_t blocks, int64_t slopes, double tolerance,
    double slack, double share, int64_t most);

}  // namespace collamo::cpu::radial
