// The operators coattention_forward and coattention_backward: schemas, and the checks that keep the
// kernels inside their tensors. collamo_kernels/coattention/op.py says what the arguments mean.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "cpu.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace collamo::cpu {
namespace {

constexpr Check check("coattention: ");

Element element(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kHalf;
    default:
      throw std::invalid_argument(std::string("coattention: ") + name +
                                  " must be float32, bfloat16 or float16");
  }
}

Atoms atoms_of(const Tensor& x, const char* name) {
  const Element type = element(x, name);
  if (x.dim() == 3) return {x.data_ptr(), type, 0, x.stride(1), x.stride(0), x.stride(2)};
  return {x.data_ptr(), type, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

Pairs pairs_of(const Tensor& x, const char* name) {
  const Element type = element(x, name);
  if (x.dim() == 2) return {x.data_ptr(), type, 0, x.stride(0), 0, x.stride(1)};
  return {x.data_ptr(), type, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

// The tensor as the kernels read it, if there is one: contiguous, with this type and size.
Optional plain(const Optional& x, ScalarType type, int64_t elements, const char* name) {
  if (!x) return {};
  check(x->scalar_type() == type, std::string(name) + " has the wrong dtype");
  check(x->numel() == elements, std::string(name) + " has the wrong number of elements");
  return torch::stable::contiguous(*x);
}

template <typename T>
const T* pointer(const Optional& x) {
  return x ? x->const_data_ptr<T>() : nullptr;
}

// The operators' arguments after q, k, v, in the order of the schema.
struct Arguments {
  Optional hop_bias, rows, slope_rows, phi, bias, coordinates, affine, sink, hops, valid,
      cu_seqlens, has_3d;
  Optional pair_types, atom_types, first_knot, seed, dropout;
  double low, block, scale;
  bool phi_of_all_pairs;
};

// The batch: where its molecules are and which of their atoms are real.
struct AttentionBatch {
  std::vector<int32_t> atoms;  // positions of the real atoms, molecule after molecule
  std::vector<Molecule> molecules;
  int64_t all_atoms = 0, all_pairs = 0, phi_rows = 0;
};

void add_molecule(AttentionBatch& batch, int64_t size, const bool* valid, bool has_3d) {
  Molecule m{static_cast<int64_t>(batch.molecules.size()), size, batch.all_atoms, batch.all_pairs};
  const size_t start = batch.atoms.size();
  for (int64_t i = 0; i < size; ++i) {
    if (!valid || valid[batch.all_atoms + i]) batch.atoms.push_back(static_cast<int32_t>(i));
  }
  m.atoms = static_cast<int64_t>(batch.atoms.size() - start);
  m.has_distances = has_3d;
  m.first_phi = batch.phi_rows;
  if (has_3d) batch.phi_rows += m.atoms * m.atoms;
  batch.all_atoms += size;
  batch.all_pairs += size * size;
  batch.molecules.push_back(m);
}

AttentionBatch batch_of(const Tensor& q, const Arguments& a) {
  const bool packed = q.dim() == 3;
  check(packed == a.cu_seqlens.has_value(),
        "q must be [T, H, D] with cu_seqlens, else [B, H, N, D]");
  const int64_t count = packed ? a.cu_seqlens->numel() - 1 : q.size(0);
  const int64_t atoms = packed ? q.size(0) : q.size(0) * q.size(2);
  const Optional ends = plain(a.cu_seqlens, ScalarType::Int, count + 1, "cu_seqlens");
  const Optional valid = plain(a.valid, ScalarType::Bool, atoms, "valid");
  const Optional has_3d = plain(a.has_3d, ScalarType::Bool, count, "has_3d");
  check(!packed || (count >= 0 && ends->const_data_ptr<int32_t>()[0] == 0 &&
                    ends->const_data_ptr<int32_t>()[count] == atoms),
        "cu_seqlens must go from 0 to the number of atoms");
  AttentionBatch batch;
  batch.atoms.reserve(atoms);
  for (int64_t b = 0; b < count; ++b) {
    const int32_t* end = pointer<int32_t>(ends);
    const int64_t size = packed ? end[b + 1] - end[b] : q.size(2);
    check(size >= 0, "cu_seqlens must never fall");
    add_molecule(batch, size, pointer<bool>(valid), !has_3d || has_3d->const_data_ptr<bool>()[b]);
  }
  const int32_t* next = batch.atoms.data();
  for (Molecule& m : batch.molecules) {
    m.atom = next;
    next += m.atoms;
  }
  return batch;
}

// A call with the tensors it points into.
struct Bound {
  Call call{};
  AttentionBatch batch;
  std::vector<Optional> kept;
};

void bind_tables(Bound& bound, const Arguments& a) {
  Call& call = bound.call;
  if (a.hops && a.hop_bias) {
    check(a.hop_bias->dim() == 2 && a.hop_bias->size(0) == call.heads, "hop_bias must be [H, S]");
    call.hop_buckets = a.hop_bias->size(1);
    check(call.hop_buckets >= 2, "hop_bias needs at least 2 columns");
    const Tensor rows = torch::stable::transpose(*a.hop_bias, 0, 1);
    const int64_t elements = call.heads * call.hop_buckets;
    bound.kept.push_back(plain(rows, ScalarType::Float, elements, "hop_bias"));
    call.hop_rows = pointer<float>(bound.kept.back());
    bound.kept.push_back(plain(a.hops, ScalarType::Byte, bound.batch.all_pairs, "hops"));
    call.hops = pointer<uint8_t>(bound.kept.back());
  }
  if (a.phi) {
    call.phi_of_all_pairs = a.phi_of_all_pairs;
    const int64_t rows = a.phi_of_all_pairs ? bound.batch.all_pairs : bound.batch.phi_rows;
    bound.kept.push_back(plain(a.phi, ScalarType::Float, rows * call.heads, "phi"));
    call.phi = pointer<float>(bound.kept.back());
  }
  if (a.sink) {
    check(a.sink->dim() == 1, "sink must be [H]");
    bound.kept.push_back(plain(a.sink, ScalarType::Float, call.heads, "sink"));
    call.sink = pointer<float>(bound.kept.back());
  }
  if (a.bias) {
    const bool fits = call.packed ? a.bias->dim() == 2 && a.bias->size(0) == call.heads &&
                                        a.bias->size(1) == bound.batch.all_pairs
                                  : a.bias->dim() == 4 && a.bias->size(1) == call.heads &&
                                        a.bias->numel() == call.heads * bound.batch.all_pairs;
    check(fits, "bias must be [B, H, N, N], or packed [H, P]");
    call.bias = pairs_of(*a.bias, "bias");
  }
}

void check_types(const Bound& bound) {
  const Call& call = bound.call;
  const auto known = [&](int32_t type) {
    check(type >= 0 && type < call.table.types, "type " + std::to_string(type) +
                                                    " of a pair or atom is outside the radial's " +
                                                    std::to_string(call.table.types) + " types");
  };
  for (const Molecule& m : bound.batch.molecules) {
    for (int64_t i = 0; m.has_distances && i < m.atoms; ++i) {
      if (call.atom_types) {
        known(call.atom_types[2 * (m.first_atom + m.atom[i])]);
        known(call.atom_types[2 * (m.first_atom + m.atom[i]) + 1]);
        continue;
      }
      const int32_t* row = call.pair_types + m.first_pair + m.atom[i] * m.size;
      for (int64_t j = 0; j < m.atoms; ++j) known(row[m.atom[j]]);
    }
  }
}

void bind_radial_table(Bound& bound, const Arguments& a) {
  if (!a.rows) return;
  Call& call = bound.call;
  auto& table = call.table;
  check(a.coordinates && a.first_knot, "rows needs coordinates and first_knot");
  check(a.rows->dim() == 3 && a.rows->size(0) >= 2, "rows must be [G, 2, H] with G >= 2");
  table.knots = a.rows->size(0);
  table.blocks = a.first_knot->numel() - 1;
  check(table.blocks >= 1 && a.block > 0, "first_knot must be [M + 1] and block positive");
  const auto keep = [&](const Optional& x, ScalarType type, int64_t elements, const char* name) {
    bound.kept.push_back(plain(x, type, elements, name));
    return bound.kept.back();
  };
  table.rows =
      pointer<float>(keep(a.rows, ScalarType::Float, table.knots * 2 * call.heads, "rows"));
  table.slope_rows = pointer<float>(
      keep(a.slope_rows, ScalarType::Float, table.knots * 2 * call.heads, "slope_rows"));
  table.first =
      pointer<int32_t>(keep(a.first_knot, ScalarType::Int, table.blocks + 1, "first_knot"));
  for (int64_t m = 0; m < table.blocks; ++m) {
    check(table.first[m] >= 0 && table.first[m + 1] > table.first[m],
          "first_knot must rise from 0");
  }
  check(table.first[table.blocks] == table.knots - 1, "first_knot must end at G - 1");
  check(table.knots * 2 * (call.heads + 64) < INT32_MAX, "rows has more than 2^31 elements");
  call.coordinates = pointer<float>(
      keep(a.coordinates, ScalarType::Float, 3 * bound.batch.all_atoms, "coordinates"));
  if (!a.affine) return;
  table.types = a.affine->numel() / 2;
  table.affine = pointer<float>(keep(a.affine, ScalarType::Float, table.types * 2, "affine"));
  check(a.pair_types.has_value() != a.atom_types.has_value(), "affine needs one kind of types");
  call.pair_types =
      pointer<int32_t>(keep(a.pair_types, ScalarType::Int, bound.batch.all_pairs, "pair_types"));
  call.atom_types = pointer<int32_t>(
      keep(a.atom_types, ScalarType::Int, 2 * bound.batch.all_atoms, "atom_types"));
  check_types(bound);
}

Bound bind(const Tensor& q, const Tensor& k, const Tensor& v, const Arguments& a) {
  check(q.dim() == 3 || q.dim() == 4, "q must be [B, H, N, D] or [T, H, D]");
  check(same_shape(q, k) && same_shape(q, v), "k and v must have the shape of q");
  Bound bound;
  bound.batch = batch_of(q, a);
  Call& call = bound.call;
  call.packed = q.dim() == 3;
  call.heads = q.size(1);
  call.dim = q.size(q.dim() - 1);
  check(call.dim >= 1, "the head width must be at least 1");
  call.q = atoms_of(q, "q"), call.k = atoms_of(k, "k"), call.v = atoms_of(v, "v");
  call.scale = static_cast<float>(a.scale);
  call.dropout = 0;
  if (a.dropout) {
    call.dropout = *plain(a.dropout, ScalarType::Double, 1, "dropout_p")->const_data_ptr<double>();
    check(call.dropout >= 0 && call.dropout < 1, "dropout_p must be at least 0 and below 1");
    const Optional seed = plain(a.seed, ScalarType::Long, 1, "seed");
    check(seed.has_value(), "dropout needs a seed");
    call.seed = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  }
  bind_tables(bound, a);
  bind_radial_table(bound, a);
  return bound;
}

// Memory for a result, not yet written. Asks the system for large pages: a batch's results are
// thousands of small ones, each of which it maps and clears at the first write.
Tensor result_like(const Tensor& x) {
  Tensor result = torch::stable::empty_like(x);
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(result.data_ptr());
  const uintptr_t bytes = result.numel() * (result.scalar_type() == ScalarType::Float ? 4 : 2);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return result;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Arguments& a) {
  Bound bound = bind(q, k, v, a);
  Tensor out = result_like(q);
  const int64_t rows = bound.batch.all_atoms * bound.call.heads;
  Tensor softmax_statistics =
      torch::stable::new_zeros(q, {2, bound.batch.all_atoms, bound.call.heads}, ScalarType::Float);
  bound.call.out = atoms_of(out, "out");
  bound.call.row_max = softmax_statistics.mutable_data_ptr<float>();
  bound.call.inverse_sum = bound.call.row_max + rows;
  Attention(bound.call, bound.batch.molecules, a.low, a.block).forward();
  return {out, softmax_statistics};
}

// The gradients beyond those of q, k and v, as bits of `requested`.
enum Requested {
  kHopBias = 1,
  kRows = 2,
  kPhi = 4,
  kBias = 8,
  kCoordinates = 16,
  kAffine = 32,
  kSink = 64
};

// Zeros in the shape of x if its gradient is requested, else an empty tensor.
Tensor gradient(const Tensor& like, const Optional& x, bool requested) {
  if (!requested || !x) return torch::stable::new_empty(like, {0}, ScalarType::Float);
  const auto sizes = x->sizes();
  return torch::stable::new_zeros(*x, sizes);
}

float* data(Tensor& x) { return x.numel() ? x.mutable_data_ptr<float>() : nullptr; }

std::vector<Tensor> backward(const Tensor& grad, const Tensor& out,
                             const Tensor& softmax_statistics, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Arguments& a, int64_t requested) {
  Bound bound = bind(q, k, v, a);
  Call& call = bound.call;
  check(same_shape(q, grad) && same_shape(q, out), "grad and out must have the shape of q");
  const int64_t softmax_rows = bound.batch.all_atoms * call.heads;
  check(softmax_statistics.scalar_type() == ScalarType::Float &&
            softmax_statistics.is_contiguous() && softmax_statistics.numel() == 2 * softmax_rows,
        "softmax_statistics must be what coattention_forward returned");
  call.out = atoms_of(out, "out");
  call.row_max = static_cast<float*>(softmax_statistics.data_ptr());
  call.inverse_sum = call.row_max + softmax_rows;
  Tensor dq = result_like(q);
  Tensor dk = result_like(k);
  Tensor dv = result_like(v);
  Tensor hops = gradient(q, a.hops ? a.hop_bias : Optional{}, requested & kHopBias);
  Tensor rows = gradient(q, a.rows, requested & kRows);
  Tensor phi = gradient(q, a.phi, requested & kPhi);
  Tensor bias = gradient(q, a.bias, requested & kBias);
  Tensor coordinates = gradient(q, a.rows ? a.coordinates : Optional{}, requested & kCoordinates);
  Tensor affine = gradient(q, a.rows ? a.affine : Optional{}, requested & kAffine);
  Tensor sink = gradient(q, a.sink, requested & kSink);
  check(coordinates.numel() + affine.numel() == 0 || call.table.slope_rows,
        "gradients of coordinates and affine need slope_rows");
  Gradients gradients{atoms_of(grad, "grad"),
                      atoms_of(dq, "q"),
                      atoms_of(dk, "k"),
                      atoms_of(dv, "v"),
                      {},
                      data(phi)};
  if (bias.numel()) gradients.bias = pairs_of(bias, "bias");
  std::vector<float> hop_rows(hops.numel());
  const TableGradients tables{hop_rows.empty() ? nullptr : hop_rows.data(), data(rows),
                              data(affine), data(coordinates), data(sink)};
  Attention(call, bound.batch.molecules, a.low, a.block).backward(gradients, tables);
  for (int64_t s = 0; s < call.hop_buckets && hops.numel(); ++s) {
    for (int64_t h = 0; h < call.heads; ++h) {
      hops.mutable_data_ptr<float>()[h * call.hop_buckets + s] = hop_rows[s * call.heads + h];
    }
  }
  return {dq, dk, dv, hops, rows, phi, bias, coordinates, affine, sink};
}

// The parameters that both operators share, as the dispatcher hands them over.
#define COLLAMO_PARAMETERS                                                                         \
  const Tensor &q, const Tensor &k, const Tensor &v, const Optional &hop_bias,                     \
      const Optional &rows, const Optional &slope_rows, const Optional &phi, const Optional &bias, \
      const Optional &coordinates, const Optional &affine, const Optional &sink,                   \
      const Optional &hops, const Optional &valid, const Optional &cu_seqlens,                     \
      const Optional &has_3d, const Optional &pair_types, const Optional &atom_types,              \
      const Optional &first_knot, const Optional &seed, const Optional &dropout_p, double low,     \
      double block, double scale, bool phi_of_all_pairs
#define COLLAMO_ARGUMENTS                                                                      \
  Arguments {                                                                                  \
    hop_bias, rows, slope_rows, phi, bias, coordinates, affine, sink, hops, valid, cu_seqlens, \
        has_3d, pair_types, atom_types, first_knot, seed, dropout_p, low, block, scale,        \
        phi_of_all_pairs                                                                       \
  }
#define COLLAMO_SCHEMA                                                                         \
  "Tensor q, Tensor k, Tensor v, Tensor? hop_bias, Tensor? rows, Tensor? slope_rows, Tensor? " \
  "phi, Tensor? bias, "                                                                        \
  "Tensor? coordinates, Tensor? affine, Tensor? sink, Tensor? hops, Tensor? valid, Tensor? "   \
  "cu_seqlens, "                                                                               \
  "Tensor? has_3d, Tensor? pair_types, Tensor? atom_types, Tensor? first_knot, Tensor? seed, " \
  "Tensor? dropout_p, float low, float block, float scale, bool phi_of_all_pairs"

std::tuple<Tensor, Tensor> coattention_forward(COLLAMO_PARAMETERS) {
  return forward(q, k, v, COLLAMO_ARGUMENTS);
}

using Ten =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Ten coattention_backward(const Tensor& grad, const Tensor& out, const Tensor& softmax_statistics,
                         COLLAMO_PARAMETERS, int64_t requested) {
  const auto g = backward(grad, out, softmax_statistics, q, k, v, COLLAMO_ARGUMENTS, requested);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9]};
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def("coattention_forward(" COLLAMO_SCHEMA ") -> (Tensor out, Tensor softmax_statistics)");
  m.def("coattention_backward(Tensor grad, Tensor out, Tensor softmax_statistics, " COLLAMO_SCHEMA
        ", int requested) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("coattention_forward", TORCH_BOX(&collamo::cpu::coattention_forward));
  m.impl("coattention_backward", TORCH_BOX(&collamo::cpu::coattention_backward));
}
