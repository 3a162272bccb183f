// The operators radial_rows, radial_rows_backward and radial_grid: the knots of a radial table and
// where they have to be. collamo_kernels/radial/op.py says what the arguments mean.
//
// Work is cut by the input alone and sums have a fixed order: any number of threads gives the same
// bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "coattention.h"
#include "radial_table_kernel.h"
#include "tasks.h"

namespace collamo::cpu {

namespace baseline {
extern const RadialKernels radial_kernels;
}
#ifdef COLLAMO_WITH_X86
namespace avx2 {
extern const RadialKernels radial_kernels;
}
namespace avx512 {
extern const RadialKernels radial_kernels;
}
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Those of the instruction set that runs the attention.
const RadialKernels& radial_kernels() {
#ifdef COLLAMO_WITH_X86
  for (const RadialKernels* wide : {&avx512::radial_kernels, &avx2::radial_kernels}) {
    if (std::strcmp(wide->name, kernels().name) == 0) return *wide;
  }
#endif
  return baseline::radial_kernels;
}

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("radial table: " + message);
}

// A float32 tensor as the kernels read it.
Tensor plain(const Tensor& x, int64_t elements, const char* name) {
  check(x.scalar_type() == ScalarType::Float, std::string(name) + " must be float32");
  check(x.numel() == elements, std::string(name) + " has the wrong number of elements");
  return torch::stable::contiguous(x);
}

int64_t whole_vectors(int64_t count) {
  const int64_t width = radial_kernels().width;
  return (count + width - 1) / width * width;
}

// from [rows, columns] → [rows, columns↑], with `fill` in the padding.
Floats laid_out(const float* from, int64_t rows, int64_t columns, float fill = 0) {
  const int64_t line = whole_vectors(columns);
  Floats to(rows * line);
  for (int64_t i = 0; i < rows; ++i) {
    float* out = to.get() + i * line;
    std::copy_n(from + i * columns, columns, out);
    std::fill(out + columns, out + line, fill);
  }
  return to;
}

// from [rows, columns] → [columns, rows↑], or of its absolute values; 0 in the padding. Some rows
// at a time, so that each is read from front to back.
Floats transposed(const float* from, int64_t rows, int64_t columns, bool absolute) {
  constexpr int64_t kSome = 16;
  const int64_t line = whole_vectors(rows);
  Floats to(columns * line, line > rows);
  for (int64_t first = 0; first < rows; first += kSome) {
    const int64_t last = std::min(first + kSome, rows);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = first; j < last; ++j) {
        const float x = from[j * columns + i];
        to.get()[i * line + j] = absolute ? std::fabs(x) : x;
      }
    }
  }
  return to;
}

// What a module is laid out for: its values, bounds (with the absolute values of the weights) or
// gradients, which need the weights both ways.
enum class Use { kValues, kBounds, kGradients };

// A module with its parameters laid out for the kernels.
class Module {
 public:
  Module(Use use, const Tensor& centre, const Tensor& width, const Tensor& weight,
         const Optional& bias, const Optional& weight2, const Optional& bias2)
      : use_(use) {
    check(weight.dim() == 2 && (!weight2 || weight2->dim() == 2), "weights must be [out, in]");
    const int64_t gaussians = weight.size(1);
    check(gaussians >= 1 && weight.size(0) >= 1, "weight must not be empty");
    const Tensor mu = plain(centre, gaussians, "centre"), s = plain(width, gaussians, "width");
    module_.centre = keep(laid_out(mu.const_data_ptr<float>(), 1, gaussians));
    module_.width = keep(laid_out(s.const_data_ptr<float>(), 1, gaussians, 1));
    add_layer(weight, bias);
    if (!weight2) return;
    check(weight2->size(1) == weight.size(0) && weight2->size(0) >= 1, "weight2 must be [H, K']");
    add_layer(*weight2, bias2);
  }

  const RadialModule& get() const { return module_; }

 private:
  const float* keep(Floats floats) {
    kept_.push_back(std::move(floats));
    return kept_.back().get();
  }

  void add_layer(const Tensor& weight, const Optional& bias) {
    const int64_t out = weight.size(0), in = weight.size(1);
    const Tensor w = plain(weight, out * in, "weight");
    const float* data = w.const_data_ptr<float>();
    RadialLayer& layer = module_.layer[module_.layers++];
    layer.in = in, layer.out = out;
    layer.transposed = keep(transposed(data, out, in, use_ == Use::kBounds));
    if (use_ == Use::kGradients) layer.weight = keep(laid_out(data, out, in));
    if (!bias) return;
    const Tensor b = plain(*bias, out, "bias");
    layer.bias = keep(laid_out(b.const_data_ptr<float>(), 1, out));
  }

  Use use_;
  RadialModule module_{};
  std::vector<Floats> kept_;
};

int64_t tiles_of(int64_t count) { return (count + kRadialTile - 1) / kRadialTile; }

// Runs task(first, count, scratch) for every tile, all of about one size.
template <typename Task>
void run_tiles(const RadialModule& module, int64_t count, const Task& task) {
  const int64_t tiles = tiles_of(count);
  run_tasks(tiles, radial_kernels().scratch_floats(module), [&](int64_t i, float* scratch) {
    const int64_t first = count * i / tiles;
    task(first, count * (i + 1) / tiles - first, scratch);
  });
}

// Some places out of many, a tile at a time. Rows of a place are copied to and from a tile's: next
// to what is worked out for each, that is nothing.
class Places {
 public:
  // Those that are wanted: by `used`, if given, and by wanted(i).
  template <typename Wanted>
  Places(const Tensor& u, const Optional& used, const Wanted& wanted)
      : all_(plain(u, u.numel(), "u")) {
    check(!used || (used->scalar_type() == ScalarType::Bool && used->numel() == all_.numel()),
          "used must be bool, one element for each of u");
    const Tensor kept = used ? torch::stable::contiguous(*used) : all_;
    const bool* use = used ? kept.const_data_ptr<bool>() : nullptr;
    for (int64_t i = 0; i < all_.numel(); ++i) {
      if ((!use || use[i]) && wanted(i)) places_.push_back(i);
    }
  }

  const Tensor& all() const { return all_; }
  int64_t tiles() const { return tiles_of(static_cast<int64_t>(places_.size())); }

  // u of a tile's places, and how many there are.
  int64_t read_tile(int64_t tile, float* u) const {
    const float* from = all_.const_data_ptr<float>();
    return for_tile(tile, [&](int64_t i, int64_t place) { u[i] = from[place]; });
  }

  void read_rows(int64_t tile, const float* from, int64_t row, float* to) const {
    for_tile(tile,
             [&](int64_t i, int64_t place) { std::copy_n(from + place * row, row, to + i * row); });
  }

  void write_rows(int64_t tile, const float* from, int64_t row, float* to) const {
    for_tile(tile,
             [&](int64_t i, int64_t place) { std::copy_n(from + i * row, row, to + place * row); });
  }

  // Rows of all others become 0.
  void clear_others(int64_t row, float* to) const {
    int64_t next = 0;
    for (const int64_t place : places_) {
      std::fill(to + next * row, to + place * row, 0.0f);
      next = place + 1;
    }
    std::fill(to + next * row, to + all_.numel() * row, 0.0f);
  }

 private:
  template <typename Task>
  int64_t for_tile(int64_t tile, const Task& task) const {
    const int64_t first = tile * kRadialTile, all = static_cast<int64_t>(places_.size());
    const int64_t count = std::min(kRadialTile, all - first);
    for (int64_t i = 0; i < count; ++i) task(i, places_[first + i]);
    return count;
  }

  Tensor all_;
  std::vector<int64_t> places_;
};

std::tuple<Tensor, Tensor> radial_rows(const Tensor& u, const Optional& used, const Tensor& centre,
                                       const Tensor& width, const Tensor& weight,
                                       const Tensor& bias, const Optional& weight2,
                                       const Optional& bias2, bool curvature) {
  const Module module(Use::kValues, centre, width, weight, bias, weight2, bias2);
  check(weight2.has_value() == bias2.has_value(), "weight2 and bias2 go together");
  const Places places(u, used, [](int64_t) { return true; });
  const int64_t heads = module.get().last().out, row = 2 * heads, count = places.all().numel();
  Tensor rows = torch::stable::new_empty(places.all(), {count, 2, heads});
  Tensor slope_rows = torch::stable::new_empty(places.all(), {curvature ? count : 0, 2, heads});
  float* to = rows.mutable_data_ptr<float>();
  float* slopes = curvature ? slope_rows.mutable_data_ptr<float>() : nullptr;
  const int64_t floats = radial_kernels().scratch_floats(module.get());
  run_tasks(places.tiles(), floats + kRadialTile * (1 + 2 * row),
            [&](int64_t tile, float* scratch) {
              float *some = scratch + floats, *values = some + kRadialTile;
              float* slopes_of = curvature ? values + kRadialTile * row : nullptr;
              const int64_t number = places.read_tile(tile, some);
              radial_kernels().rows(module.get(), some, number, values, slopes_of, scratch);
              places.write_rows(tile, values, row, to);
              if (curvature) places.write_rows(tile, slopes_of, row, slopes);
            });
  places.clear_others(row, to);
  if (curvature) places.clear_others(row, slopes);
  return {rows, slope_rows};
}

// --- gradients ----------------------------------------------------------------------------------

constexpr int64_t kMostSlots = 8;  // private copies of the gradients, 85 KB each for 128 Gaussians

// Private gradients, one after the other in one block of memory.
struct Slots {
  explicit Slots(const RadialModule& m, int64_t count) {
    const auto next = [this](int64_t floats) {
      const int64_t here = floats_;
      floats_ += floats;
      return here;
    };
    centre = next(whole_vectors(m.first().in));
    width = next(whole_vectors(m.first().in));
    for (int i = 0; i < m.layers; ++i) {
      weight[i] = next(m.layer[i].out * whole_vectors(m.layer[i].in));
      bias[i] = next(whole_vectors(m.layer[i].out));
    }
    memory.reset(new Floats(count * floats_));
  }

  void clear(int64_t slot) const { std::fill_n(memory->get() + slot * floats_, floats_, 0.0f); }

  RadialGradients at(int64_t slot) const {
    float* base = memory->get() + slot * floats_;
    return {base + centre,
            base + width,
            {base + weight[0], base + weight[1]},
            {base + bias[0], base + bias[1]}};
  }

  // Adds the others to the first, in order.
  void sum(int64_t count) const {
    torch::stable::parallel_for(0, floats_, 4096, [&](int64_t begin, int64_t end) {
      float* all = memory->get();
      for (int64_t slot = 1; slot < count; ++slot) {
        for (int64_t i = begin; i < end; ++i) all[i] += all[slot * floats_ + i];
      }
    });
  }

  int64_t centre, width, weight[2] = {}, bias[2] = {};
  std::unique_ptr<Floats> memory;

 private:
  int64_t floats_ = 0;
};

// from [rows, columns↑] in the shape of x.
Tensor gradient(const float* from, const Tensor& x) {
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns;
  const auto sizes = x.sizes();
  Tensor to = torch::stable::new_empty(x, {sizes.begin(), sizes.end()});
  float* data = to.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(from + i * whole_vectors(columns), columns, data + i * columns);
  }
  return to;
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Six radial_rows_backward(const Tensor& grad, const Tensor& u, const Optional& used,
                         const Tensor& centre, const Tensor& width, const Tensor& weight,
                         const Tensor& bias, const Optional& weight2, const Optional& bias2) {
  const Module module(Use::kGradients, centre, width, weight, bias, weight2, bias2);
  check(weight2.has_value() == bias2.has_value(), "weight2 and bias2 go together");
  const RadialModule& m = module.get();
  const int64_t row = 2 * m.last().out;
  const Tensor incoming = plain(grad, u.numel() * row, "grad");
  const float* from = incoming.const_data_ptr<float>();
  // Rows without a gradient add nothing.
  const Places places(u, used, [&](int64_t i) {
    return std::any_of(from + i * row, from + (i + 1) * row, [](float x) { return x != 0; });
  });
  const int64_t tiles = places.tiles(), slots = std::clamp<int64_t>(tiles, 1, kMostSlots);
  const int64_t floats = radial_kernels().scratch_floats(m);
  const Slots own(m, slots);
  run_tasks(slots, floats + kRadialTile * (row + 1), [&](int64_t slot, float* scratch) {
    float *some = scratch + floats, *of_some = some + kRadialTile;
    own.clear(slot);
    for (int64_t tile = tiles * slot / slots; tile < tiles * (slot + 1) / slots; ++tile) {
      const int64_t count = places.read_tile(tile, some);
      places.read_rows(tile, from, row, of_some);
      radial_kernels().gradients(m, some, count, of_some, own.at(slot), scratch);
    }
  });
  own.sum(slots);
  const RadialGradients sum = own.at(0);
  const auto second = [&](const float* from, const Optional& x) {
    return x ? gradient(from, *x) : torch::stable::new_empty(u, {0});
  };
  return {gradient(sum.centre, centre),    gradient(sum.width, width),
          gradient(sum.weight[0], weight), gradient(sum.bias[0], bias),
          second(sum.weight[1], weight2),  second(sum.bias[1], bias2)};
}

// --- grid ---------------------------------------------------------------------------------------

// What a grid has to satisfy; GaussianRadial.table has the reasons.
struct Demands {
  double tolerance;
  double slack;  // the bounds of Φ3d and its slope may be so many times too large
  double share;  // of the tolerance, for each Gaussian alone; 0 does not hold them
};

// Bounds of the fourth (and fifth) derivative in each block [M, orders], of the Gaussians' fourth
// [M], and the largest values (and slopes) in the blocks' centres.
struct Survey {
  int64_t orders;
  std::vector<float> bounds, gaussian, largest;
};

Survey survey(const Module& module, const Module& absolute, const std::vector<float>& centres,
              double block, int64_t orders) {
  const int64_t count = static_cast<int64_t>(centres.size()), heads = module.get().last().out;
  Survey found{orders, std::vector<float>(count * orders), std::vector<float>(count),
               std::vector<float>(orders, 1.0f)};
  std::vector<float> rows(count * 2 * heads);
  run_tiles(module.get(), count, [&](int64_t first, int64_t tile, float* scratch) {
    radial_kernels().bounds(absolute.get(), centres.data() + first, tile,
                            static_cast<float>(block / 2), static_cast<int>(3 + orders),
                            found.bounds.data() + first * orders, found.gaussian.data() + first,
                            scratch);
    radial_kernels().rows(module.get(), centres.data() + first, tile,
                          rows.data() + 2 * first * heads, nullptr, scratch);
  });
  for (int64_t i = 0; i < count * 2 * heads; ++i) {
    const int64_t order = i / heads % 2;
    if (order == orders) continue;
    float& largest = found.largest[order];
    largest = std::isnan(rows[i]) ? rows[i] : std::max(largest, std::fabs(rows[i]));
  }
  return found;
}

// Cells of block m, a power of two, as few as the demands allow; NaN where a bound is.
double cells_of(const Survey& found, int64_t m, double block, const Demands& demands) {
  double worst = demands.share > 0 ? found.gaussian[m] / demands.share : 0;
  for (int64_t order = 0; order < found.orders; ++order) {
    const double bound = found.bounds[m * found.orders + order];
    const double wanted = bound / (found.largest[order] * demands.slack);
    if (!(wanted <= worst)) worst = wanted;
  }
  const double cells = block * std::pow(worst / (384 * demands.tolerance), 0.25);
  return cells <= 1 ? 1 : std::exp2(std::ceil(std::log2(cells)));
}

// The knots that a u in an occurring part of [first, last] is next to.
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
  // In parts: a distance of single precision may be a hundredth as far on the wrong side.
  static constexpr double kSlack = 0.1;

  int64_t part_of(double u, double slack) const {
    const double at = (u - first_) * per_part_ + slack;
    return static_cast<int64_t>(std::clamp(at, 0.0, static_cast<double>(count_ - 1)));
  }

  Tensor parts_;
  int64_t count_;
  double first_, per_part_;
  int64_t next_ = 0;  // none that occurs lies between the last interval's start and this one
};

// Which of the knots u are next to a place that occurs; none where nothing is known of that.
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
  const Survey found = survey(module, absolute, centres, block, 1 + slopes);
  Tensor first = torch::stable::new_empty(centre, {blocks + 1}, ScalarType::Int);
  Tensor errors = torch::stable::new_zeros(centre, {1 + slopes}, ScalarType::Float);
  std::vector<float> u;
  double total = 0;
  for (int64_t m = 0; m < blocks; ++m) {
    const double cells = cells_of(found, m, block, {tolerance, slack, share});
    total += cells;
    if (!(total < static_cast<double>(most))) break;  // NaN too
    first.mutable_data_ptr<int32_t>()[m] = static_cast<int32_t>(total - cells);
    const double start = low + static_cast<double>(m) * block, h = block / cells;
    for (int64_t i = 0; i < static_cast<int64_t>(cells); ++i) {
      u.push_back(static_cast<float>(start + static_cast<double>(i) * h));
    }
    for (int64_t order = 0; order <= slopes; ++order) {
      float& error = errors.mutable_data_ptr<float>()[order];
      const double bound = found.bounds[m * found.orders + order] * h * h * h * h / 384;
      error = std::max(error, static_cast<float>(bound));
    }
  }
  const bool fits = total < static_cast<double>(most);
  if (fits) u.push_back(static_cast<float>(low + static_cast<double>(blocks) * block));
  first.mutable_data_ptr<int32_t>()[blocks] = static_cast<int32_t>(fits ? total : 0);
  Tensor knots = torch::stable::new_empty(centre, {fits ? static_cast<int64_t>(u.size()) : 0},
                                          ScalarType::Float);
  if (!fits) u.clear();
  std::copy(u.begin(), u.end(), knots.mutable_data_ptr<float>());
  return {knots, first, errors, used_knots(u, occurring, first_place, last_place, centre)};
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def(
      "radial_rows(Tensor u, Tensor? used, Tensor centre, Tensor width, Tensor weight, "
      "Tensor bias, Tensor? weight2, Tensor? bias2, bool curvature) -> "
      "(Tensor rows, Tensor slope_rows)");
  m.def(
      "radial_rows_backward(Tensor grad, Tensor u, Tensor? used, Tensor centre, Tensor width, "
      "Tensor weight, Tensor bias, Tensor? weight2, Tensor? bias2) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "radial_grid(Tensor centre, Tensor width, Tensor weight, Tensor bias, Tensor? weight2, "
      "Tensor? bias2, Tensor? occurring, float first, float last, float low, float block, "
      "int blocks, int slopes, float tolerance, float slack, float share, int most) -> "
      "(Tensor u, Tensor first_knot, Tensor errors, Tensor used)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("radial_rows", TORCH_BOX(&collamo::cpu::radial_rows));
  m.impl("radial_rows_backward", TORCH_BOX(&collamo::cpu::radial_rows_backward));
  m.impl("radial_grid", TORCH_BOX(&collamo::cpu::radial_grid));
}
