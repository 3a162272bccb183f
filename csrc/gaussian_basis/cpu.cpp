// Cuts the places into tasks, and chooses the instruction set that evaluates the Gaussians.
//
// Tasks depend on the number of places alone, and sums over tasks have a fixed order: any number of
// threads gives the same bits.

#include "cpu.h"

#include <algorithm>

#include "../capability.h"
#include "../tasks.h"
#include "kernel.h"

namespace collamo::cpu {

COLLAMO_DECLARE_TABLES(GaussianKernels, gaussian_kernels)

namespace {

constexpr int64_t kNumbersPerTask = 16384;  // some 20 µs
constexpr double kRootOfTwoPi = 2.5066282746310002;

const GaussianKernels& kernels() {
  static const GaussianKernels& table = widest<GaussianKernels>(COLLAMO_TABLES(gaussian_kernels));
  return table;
}

// The Gaussians laid out for the kernels, and the tasks.
class Layout {
 public:
  explicit Layout(const GaussianBasis& basis)
      : basis_(basis),
        line_((basis.count + kernels().width - 1) / kernels().width * kernels().width),
        rows_(3 * line_) {
    float* row = rows_.get();
    std::fill_n(row, 3 * line_, 1.0f);
    std::copy_n(basis.centre, basis.count, row);
    std::copy_n(basis.width, basis.count, row + line_);
    for (int64_t k = 0; k < line_; ++k) {
      row[2 * line_ + k] = static_cast<float>(1 / (kRootOfTwoPi * row[line_ + k]));
    }
  }

  // Floats of a row of Gaussians, K↑.
  int64_t line() const { return line_; }
  int64_t tasks() const { return (basis_.places + step() - 1) / step(); }
  Gaussians gaussians() const {
    return {rows_.get(), rows_.get() + line_, rows_.get() + 2 * line_, basis_.count};
  }

  // task(number, first place, how many, scratch [2, K↑]) for all tasks.
  template <typename Task>
  void run(const Task& task) const {
    run_tasks(tasks(), 2 * line_, [&](int64_t i, float* scratch) {
      const int64_t first = i * step();
      task(i, first, std::min(step(), basis_.places - first), scratch);
    });
  }

 private:
  int64_t step() const {
    return std::max<int64_t>(1, kNumbersPerTask / std::max(line_, int64_t{1}));
  }

  const GaussianBasis& basis_;
  int64_t line_;
  Floats rows_;
};

}  // namespace

void gaussian_basis(const GaussianBasis& basis, float* out) {
  const Layout layout(basis);
  layout.run([&](int64_t, int64_t first, int64_t places, float*) {
    kernels().forward(layout.gaussians(), basis.u + first, places, out + first * basis.count);
  });
}

void gaussian_basis_backward(const GaussianBasis& basis, const float* grad, float* du,
                             float* dcentre, float* dwidth) {
  const Layout layout(basis);
  const int64_t line = layout.line();
  const Floats sums(2 * line * layout.tasks(), true);
  layout.run([&](int64_t task, int64_t first, int64_t places, float* scratch) {
    kernels().backward(layout.gaussians(), basis.u + first, places, grad + first * basis.count,
                       du + first, sums.get() + 2 * line * task, scratch);
  });
  const auto write_total = [&](int64_t row, float* to) {
    for (int64_t k = 0; k < basis.count; ++k) {
      double sum = 0;
      for (int64_t task = 0; task < layout.tasks(); ++task) {
        sum += sums.get()[(2 * task + row) * line + k];
      }
      to[k] = static_cast<float>(sum / basis.width[k]);
    }
  };
  write_total(0, dcentre);
  write_total(1, dwidth);
}

}  // namespace collamo::cpu
