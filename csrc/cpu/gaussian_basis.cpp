// The operators gaussian_basis and gaussian_basis_backward; collamo_kernels/gaussian_basis/op.py
// says what the arguments mean.
//
// Places are cut into tasks by their number alone, and sums over tasks have a fixed order: any
// number of threads gives the same bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

#include "coattention.h"
#include "gaussian_basis_kernel.h"
#include "tasks.h"

namespace collamo::cpu {

namespace baseline {
extern const GaussianKernels gaussian_kernels;
}
#ifdef COLLAMO_WITH_X86
namespace avx2 {
extern const GaussianKernels gaussian_kernels;
}
namespace avx512 {
extern const GaussianKernels gaussian_kernels;
}
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kNumbersPerTask = 16384;  // some 20 µs
constexpr double kRootOfTwoPi = 2.5066282746310002;

// Those of the instruction set that runs the attention.
const GaussianKernels& gaussian_kernels() {
#ifdef COLLAMO_WITH_X86
  for (const GaussianKernels* wide : {&avx512::gaussian_kernels, &avx2::gaussian_kernels}) {
    if (std::strcmp(wide->name, kernels().name) == 0) return *wide;
  }
#endif
  return baseline::gaussian_kernels;
}

void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(std::string("gaussian_basis: ") + message);
}

// The arguments that both operators share, checked, and the Gaussians laid out for the kernels.
class Basis {
 public:
  Basis(const Tensor& u, const Tensor& centre, const Tensor& width)
      : count_(centre.numel()),
        line_((count_ + gaussian_kernels().width - 1) / gaussian_kernels().width *
              gaussian_kernels().width),
        u_(torch::stable::contiguous(u)),
        rows_(3 * line_) {
    for (const Tensor* x : {&u, &centre, &width}) {
      check(x->scalar_type() == ScalarType::Float && x->dim() == 1,
            "u, centre and width must be float32 [·]");
    }
    check(width.numel() == count_, "width must be as long as centre");
    const Tensor c = torch::stable::contiguous(centre), w = torch::stable::contiguous(width);
    float* row = rows_.get();
    std::fill_n(row, 3 * line_, 1.0f);
    std::copy_n(c.const_data_ptr<float>(), count_, row);
    std::copy_n(w.const_data_ptr<float>(), count_, row + line_);
    for (int64_t k = 0; k < line_; ++k) {
      row[2 * line_ + k] = static_cast<float>(1 / (kRootOfTwoPi * row[line_ + k]));
    }
  }

  int64_t count() const { return count_; }
  int64_t line() const { return line_; }
  int64_t places() const { return u_.numel(); }
  int64_t step() const {
    return std::max<int64_t>(1, kNumbersPerTask / std::max(line_, int64_t{1}));
  }
  int64_t tasks() const { return (places() + step() - 1) / step(); }
  Gaussians get() const {
    return {rows_.get(), rows_.get() + line_, rows_.get() + 2 * line_, count_};
  }

  // task(number, u, first place, how many, scratch [2, K↑]) for all tasks.
  template <typename Task>
  void run(const Task& task) const {
    run_tasks(tasks(), 2 * line_, [&](int64_t i, float* scratch) {
      const int64_t first = i * step();
      task(i, u_.const_data_ptr<float>(), first, std::min(step(), places() - first), scratch);
    });
  }

 private:
  int64_t count_, line_;
  Tensor u_;
  Floats rows_;
};

Tensor gaussian_basis(const Tensor& u, const Tensor& centre, const Tensor& width) {
  const Basis basis(u, centre, width);
  Tensor out = torch::stable::new_empty(u, {basis.places(), basis.count()});
  float* to = out.mutable_data_ptr<float>();
  basis.run([&](int64_t, const float* all, int64_t first, int64_t places, float*) {
    gaussian_kernels().forward(basis.get(), all + first, places, to + first * basis.count());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_basis_backward(const Tensor& grad, const Tensor& u,
                                                           const Tensor& centre,
                                                           const Tensor& width) {
  const Basis basis(u, centre, width);
  const int64_t count = basis.count(), line = basis.line();
  check(grad.scalar_type() == ScalarType::Float && grad.dim() == 2 &&
            grad.size(0) == basis.places() && grad.size(1) == count,
        "grad must be float32 [M, K]");
  const Tensor incoming = torch::stable::contiguous(grad);
  const float* from = incoming.const_data_ptr<float>();
  Tensor of_u = torch::stable::new_empty(u, {basis.places()});
  float* to = of_u.mutable_data_ptr<float>();
  const Floats sums(2 * line * basis.tasks(), true);
  basis.run([&](int64_t task, const float* all, int64_t first, int64_t places, float* scratch) {
    gaussian_kernels().backward(basis.get(), all + first, places, from + first * count, to + first,
                                sums.get() + 2 * line * task, scratch);
  });
  const auto total = [&](int64_t row) {
    Tensor of = torch::stable::new_empty(u, {count});
    for (int64_t k = 0; k < count; ++k) {
      double sum = 0;
      for (int64_t task = 0; task < basis.tasks(); ++task) {
        sum += sums.get()[(2 * task + row) * line + k];
      }
      of.mutable_data_ptr<float>()[k] = static_cast<float>(sum / basis.get().width[k]);
    }
    return of;
  };
  return {of_u, total(0), total(1)};
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
  m.impl("gaussian_basis", TORCH_BOX(&collamo::cpu::gaussian_basis));
  m.impl("gaussian_basis_backward", TORCH_BOX(&collamo::cpu::gaussian_basis_backward));
}
