// Where the knots of a radial table have to be.
//
// Work is cut by the input alone: any number of threads gives the same bits.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu.h"
#include "module.h"

namespace collamo::cpu::radial {
namespace {

// Runs task(first, count, scratch) for every tile, all of about one size.
template <typename Task>
void run_tiles(const RadialModule& module, int64_t count, const Task& task) {
  const int64_t tiles = tiles_of(count);
  run_tasks(tiles, kernels().scratch_floats(module), [&](int64_t i, float* scratch) {
    const int64_t first = count * i / tiles;
    task(first, count * (i + 1) / tiles - first, scratch);
  });
}

// What a grid has to satisfy; GaussianRadial.table has the reasons.
struct Demands {
  double tolerance;
  double slack;  // how many times too large the bounds of Φ3d and its slope may be
  double share;  // of the tolerance, for each Gaussian by itself; 0: no such limit
};

// Bounds of the fourth (and fifth) derivative in each block [M, orders], of the Gaussians' fourth
// [M], and the largest values (and slopes) in the blocks' centres.
struct BlockSurvey {
  int64_t orders;
  std::vector<float> bounds, gaussian, largest;
};

BlockSurvey survey_blocks(const Module& module, const Module& absolute,
                          const std::vector<float>& centres, double block, int64_t orders) {
  const int64_t count = static_cast<int64_t>(centres.size()), heads = module.get().last().out;
  BlockSurvey survey{orders, std::vector<float>(count * orders), std::vector<float>(count),
                     std::vector<float>(orders, 1.0f)};
  std::vector<float> rows(count * 2 * heads);
  run_tiles(module.get(), count, [&](int64_t first, int64_t tile, float* scratch) {
    kernels().bounds(absolute.get(), centres.data() + first, tile, static_cast<float>(block / 2),
                     static_cast<int>(3 + orders), survey.bounds.data() + first * orders,
                     survey.gaussian.data() + first, scratch);
    kernels().rows(module.get(), centres.data() + first, tile, rows.data() + 2 * first * heads,
                   nullptr, scratch);
  });
  for (int64_t i = 0; i < count * 2 * heads; ++i) {
    const int64_t order = i / heads % 2;
    if (order == orders) continue;
    float& largest = survey.largest[order];
    largest = std::isnan(rows[i]) ? rows[i] : std::max(largest, std::fabs(rows[i]));
  }
  return survey;
}

// Cells of block m, a power of two, as few as the demands allow; NaN if a bound is NaN.
double cells_of(const BlockSurvey& survey, int64_t m, double block, const Demands& demands) {
  double worst = demands.share > 0 ? survey.gaussian[m] / demands.share : 0;
  for (int64_t order = 0; order < survey.orders; ++order) {
    const double bound = survey.bounds[m * survey.orders + order];
    const double demand = bound / (survey.largest[order] * demands.slack);
    if (!(demand <= worst)) worst = demand;
  }
  const double cells = block * std::pow(worst / (384 * demands.tolerance), 0.25);
  return cells <= 1 ? 1 : std::exp2(std::ceil(std::log2(cells)));
}

// The parts of [first, last] that occur.
class Occurring {
 public:
  Occurring(const Tensor& parts, double first, double last)
      : parts_(torch::stable::contiguous(parts)), count_(parts.numel()), first_(first) {
    check(parts.scalar_type() == ScalarType::Bool && count_ >= 1,
          "occurring must be bool, and not empty");
    per_part_ = last > first ? static_cast<double>(count_) / (last - first) : 0;
  }

  // Whether some u may be in [low, high]. Intervals come from left to right.
  bool between(double low, double high) {
    const bool* part = parts_.const_data_ptr<bool>();
    const int64_t end = part_of(high, kSlack) + 1;
    next_ = std::max(next_, part_of(low, -kSlack));
    while (next_ < end && !part[next_]) ++next_;
    return next_ < end;
  }

 private:
  // In parts. Rounding moves a distance by a hundredth of a part at most, so this is ample.
  static constexpr double kSlack = 0.1;

  int64_t part_of(double u, double slack) const {
    const double at = (u - first_) * per_part_ + slack;
    return static_cast<int64_t>(std::clamp(at, 0.0, static_cast<double>(count_ - 1)));
  }

  Tensor parts_;
  int64_t count_;
  double first_, per_part_;
  int64_t next_ = 0;  // nothing occurs between the last interval's start and this part
};

// Which of the knots u are next to a place that occurs; empty if nothing says what occurs.
Tensor used_knots(const std::vector<float>& u, const Optional& occurring, double first, double last,
                  const Tensor& like) {
  const auto count = static_cast<int64_t>(u.size());
  Tensor used = torch::stable::new_empty(like, {occurring ? count : 0}, ScalarType::Bool);
  if (!occurring) return used;
  Occurring places(*occurring, first, last);
  bool* use = used.mutable_data_ptr<bool>();
  std::fill_n(use, count, false);
  for (int64_t i = 0; i + 1 < count; ++i) {
    if (places.between(u[i], u[i + 1])) use[i] = use[i + 1] = true;
  }
  return used;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> radial_grid(
    const Tensor& centre, const Tensor& width, const Tensor& weight, const Tensor& bias,
    const Optional& weight2, const Optional& bias2, const Optional& occurring, double first_place,
    double last_place, double low, double block, int64_t blocks, int64_t slopes, double tolerance,
    double slack, double share, int64_t most) {
  check(weight2.has_value() == bias2.has_value(), "weight2 and bias2 go together");
  check(slopes == 0 || slopes == 1, "slopes must be 0 or 1");
  check(blocks >= 1 && block > 0, "there must be a block, of positive length");
  const Module module(Use::kValues, centre, width, weight, bias, weight2, bias2);
  const Module absolute(Use::kBounds, centre, width, weight, {}, weight2, {});
  std::vector<float> centres(blocks);
  for (int64_t m = 0; m < blocks; ++m) {
    centres[m] = static_cast<float>(low + (static_cast<double>(m) + 0.5) * block);
  }
  const BlockSurvey survey = survey_blocks(module, absolute, centres, block, 1 + slopes);
  Tensor first = torch::stable::new_zeros(centre, {blocks + 1}, ScalarType::Int);
  Tensor errors = torch::stable::new_zeros(centre, {1 + slopes}, ScalarType::Float);
  std::vector<float> u;
  double total = 0;
  for (int64_t m = 0; m < blocks; ++m) {
    const double cells = cells_of(survey, m, block, {tolerance, slack, share});
    total += cells;
    if (!(total < static_cast<double>(most))) break;  // NaN too
    first.mutable_data_ptr<int32_t>()[m] = static_cast<int32_t>(total - cells);
    const double start = low + static_cast<double>(m) * block, h = block / cells;
    for (int64_t i = 0; i < static_cast<int64_t>(cells); ++i) {
      u.push_back(static_cast<float>(start + static_cast<double>(i) * h));
    }
    for (int64_t order = 0; order <= slopes; ++order) {
      float& error = errors.mutable_data_ptr<float>()[order];
      const double bound = survey.bounds[m * survey.orders + order] * h * h * h * h / 384;
      error = std::max(error, static_cast<float>(bound));
    }
  }
  const bool in_limit = total < static_cast<double>(most);
  if (in_limit) u.push_back(static_cast<float>(low + static_cast<double>(blocks) * block));
  first.mutable_data_ptr<int32_t>()[blocks] = static_cast<int32_t>(in_limit ? total : 0);
  Tensor knots = torch::stable::new_empty(centre, {in_limit ? static_cast<int64_t>(u.size()) : 0},
                                          ScalarType::Float);
  if (!in_limit) u.clear();
  std::copy(u.begin(), u.end(), knots.mutable_data_ptr<float>());
  return {knots, first, errors, used_knots(u, occurring, first_place, last_place, centre)};
}

}  // namespace collamo::cpu::radial
