// Rows of the radial table and their gradients.
//
// Work is cut by the input alone and sums have a fixed order: any number of threads gives the same
// bits.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu.h"
#include "module.h"

namespace collamo::cpu::radial {
namespace {

// A selection of places, a tile at a time. Rows are copied to and from the tile, which costs
// nothing next to computing them.
class Places {
 public:
  // The places that `used` marks, if given, and for which needed(i) holds.
  template <typename Needed>
  Places(const Tensor& u, const Optional& used, const Needed& needed)
      : all_(plain(u, u.numel(), "u")) {
    check(!used || (used->scalar_type() == ScalarType::Bool && used->numel() == all_.numel()),
          "used must be bool, one element for each of u");
    const Tensor kept = used ? torch::stable::contiguous(*used) : all_;
    const bool* use = used ? kept.const_data_ptr<bool>() : nullptr;
    for (int64_t i = 0; i < all_.numel(); ++i) {
      if ((!use || use[i]) && needed(i)) places_.push_back(i);
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

  // Zeros the rows of all other places.
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

}  // namespace

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
  const int64_t floats = kernels().scratch_floats(module.get());
  run_tasks(places.tiles(), floats + kRadialTile * (1 + 2 * row),
            [&](int64_t tile, float* scratch) {
              float *tile_u = scratch + floats, *values = tile_u + kRadialTile;
              float* tile_slopes = curvature ? values + kRadialTile * row : nullptr;
              const int64_t number = places.read_tile(tile, tile_u);
              kernels().rows(module.get(), tile_u, number, values, tile_slopes, scratch);
              places.write_rows(tile, values, row, to);
              if (curvature) places.write_rows(tile, tile_slopes, row, slopes);
            });
  places.clear_others(row, to);
  if (curvature) places.clear_others(row, slopes);
  return {rows, slope_rows};
}

namespace {

constexpr int64_t kMostSlots = 8;  // private copies of the gradients, 85 KB each for 128 Gaussians

// Private gradients, one after another in one block of memory.
struct ModuleSlots {
  explicit ModuleSlots(const RadialModule& m, int64_t count) {
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

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> radial_rows_backward(
    const Tensor& grad, const Tensor& u, const Optional& used, const Tensor& centre,
    const Tensor& width, const Tensor& weight, const Tensor& bias, const Optional& weight2,
    const Optional& bias2) {
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
  const int64_t floats = kernels().scratch_floats(m);
  const ModuleSlots own(m, slots);
  run_tasks(slots, floats + kRadialTile * (row + 1), [&](int64_t slot, float* scratch) {
    float *tile_u = scratch + floats, *tile_grad = tile_u + kRadialTile;
    own.clear(slot);
    for (int64_t tile = tiles * slot / slots; tile < tiles * (slot + 1) / slots; ++tile) {
      const int64_t count = places.read_tile(tile, tile_u);
      places.read_rows(tile, from, row, tile_grad);
      kernels().gradients(m, tile_u, count, tile_grad, own.at(slot), scratch);
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

}  // namespace collamo::cpu::radial
