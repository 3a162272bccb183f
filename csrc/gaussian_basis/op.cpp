// The operators gaussian_basis and gaussian_basis_backward; collamo_kernels/gaussian_basis/op.py
// says what the arguments mean.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

#include "../checks.h"
#include "cpu.h"

namespace collamo::cpu {
namespace {

constexpr Check check("gaussian_basis: ");

// The arguments that both operators share, checked.
class Arguments {
 public:
  Arguments(const Tensor& u, const Tensor& centre, const Tensor& width)
      : u_(torch::stable::contiguous(u)),
        centre_(torch::stable::contiguous(centre)),
        width_(torch::stable::contiguous(width)) {
    for (const Tensor* x : {&u, &centre, &width}) {
      check(fits(*x, ScalarType::Float, {kAny}), "u, centre and width must be float32 [·]");
    }
    check(width.numel() == centre.numel(), "width must be as long as centre");
  }

  GaussianBasis basis() const {
    return {u_.const_data_ptr<float>(), centre_.const_data_ptr<float>(),
            width_.const_data_ptr<float>(), u_.numel(), centre_.numel()};
  }

 private:
  Tensor u_, centre_, width_;
};

Tensor forward(const Tensor& u, const Tensor& centre, const Tensor& width) {
  const Arguments arguments(u, centre, width);
  const GaussianBasis basis = arguments.basis();
  Tensor out = torch::stable::new_empty(u, {basis.places, basis.count});
  gaussian_basis(basis, out.mutable_data_ptr<float>());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& u,
                                            const Tensor& centre, const Tensor& width) {
  const Arguments arguments(u, centre, width);
  const GaussianBasis basis = arguments.basis();
  check(fits(grad, ScalarType::Float, {basis.places, basis.count}), "grad must be float32 [M, K]");
  const Tensor incoming = torch::stable::contiguous(grad);
  Tensor du = torch::stable::new_empty(u, {basis.places});
  Tensor dcentre = torch::stable::new_empty(u, {basis.count});
  Tensor dwidth = torch::stable::new_empty(u, {basis.count});
  gaussian_basis_backward(basis, incoming.const_data_ptr<float>(), du.mutable_data_ptr<float>(),
                          dcentre.mutable_data_ptr<float>(), dwidth.mutable_data_ptr<float>());
  return {du, dcentre, dwidth};
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def("gaussian_basis(Tensor u, Tensor centre, Tensor width) -> Tensor");
  m.def(
      "gaussian_basis_backward(Tensor grad, Tensor u, Tensor centre, Tensor width) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("gaussian_basis", TORCH_BOX(&collamo::cpu::forward));
  m.impl("gaussian_basis_backward", TORCH_BOX(&collamo::cpu::backward));
}
