// The operators pair_bias_attention and pair_bias_attention_backward: schemas, and the checks that
// keep the kernels inside their tensors. collamo_kernels/pair_bias_attention/op.py says what the
// arguments mean.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../checks.h"
#include "cpu.h"

namespace collamo::cpu {
namespace {

constexpr Check check("pair_bias_attention: ");

// x [T, H, D] as the kernels read it, if it is like `q`.
Atoms atoms_of(const Tensor& x, const Tensor& q, const char* message) {
  check(fits(x, q.scalar_type(), {q.size(0), q.size(1), q.size(2)}), message);
  const bool wide = x.scalar_type() == ScalarType::Float;
  return {x.data_ptr(), wide ? Element::kFloat : Element::kBFloat16, 0, x.stride(1), x.stride(0),
          x.stride(2)};
}

// Pairs [H, P] as the kernels read them.
Tensor pairs_of(const Tensor& x, int64_t heads, int64_t pairs, const char* message) {
  check(fits(x, ScalarType::Float, {heads, pairs}), message);
  return torch::stable::contiguous(x);
}

// The arguments that the operators share, checked, with the tensors that the call points into.
struct Arguments {
  PairBiasCall call{};
  PackedMolecules molecules{};
  Tensor bias, ends;

  Arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pair_bias,
            const Tensor& cu_seqlens, const Optional& seed, double scale, double dropout_p)
      : bias(pair_bias), ends(torch::stable::contiguous(cu_seqlens)) {
    check(q.dim() == 3 && q.size(2) >= 1 &&
              (q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::BFloat16),
          "q must be float32 or bfloat16 [T, H, D]");
    check(fits(ends, ScalarType::Int, {kAny}) && ends.size(0) >= 1,
          "cu_seqlens must be int32 [B + 1]");
    molecules = {ends.const_data_ptr<int32_t>(), ends.size(0) - 1, q.size(1)};
    check(molecules.ends[0] == 0 && molecules.ends[molecules.count] == q.size(0),
          "cu_seqlens must go from 0 to the number of atoms");
    for (int64_t b = 0; b < molecules.count; ++b) {
      const int64_t atoms = molecules.ends[b + 1] - molecules.ends[b];
      check(atoms >= 0, "cu_seqlens must never fall");
      call.pairs += atoms * atoms;
    }
    bias = pairs_of(pair_bias, q.size(1), call.pairs, "bias must be float32 [H, P]");
    call.q = atoms_of(q, q, ""), call.k = atoms_of(k, q, "k must be like q");
    call.v = atoms_of(v, q, "v must be like q");
    call.dim = q.size(2);
    call.bias = bias.const_data_ptr<float>();
    call.scale = static_cast<float>(scale);
    check(dropout_p >= 0 && dropout_p < 1, "dropout_p must be at least 0 and below 1");
    call.dropout = dropout_p;
    if (dropout_p == 0) return;
    check(seed && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
          "dropout needs a seed, one int64");
    call.seed = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& bias, const Tensor& cu_seqlens,
                                   const Optional& seed, double scale, double dropout_p,
                                   bool with_logits) {
  const Arguments arguments(q, k, v, bias, cu_seqlens, seed, scale, dropout_p);
  const int64_t heads = q.size(1);
  Tensor out = torch::stable::new_empty(q, {q.size(0), heads, q.size(2)});
  Tensor logits = with_logits ? torch::stable::new_empty(bias, {heads, arguments.call.pairs})
                              : torch::stable::new_empty(bias, {0});
  pair_bias_attention(
      arguments.call, arguments.molecules,
      {atoms_of(out, q, ""), with_logits ? logits.mutable_data_ptr<float>() : nullptr});
  return {out, logits};
}

Tensor forward_in_place(const Tensor& q, const Tensor& k, const Tensor& v, Tensor bias,
                        const Tensor& cu_seqlens, const Optional& seed, double scale,
                        double dropout_p) {
  check(bias.is_contiguous(), "bias must be contiguous to be written over");
  const Arguments arguments(q, k, v, bias, cu_seqlens, seed, scale, dropout_p);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  pair_bias_attention(arguments.call, arguments.molecules,
                      {atoms_of(out, q, ""), bias.mutable_data_ptr<float>()});
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Optional& grad_logits,
                                                    const Tensor& q, const Tensor& k,
                                                    const Tensor& v, const Tensor& bias,
                                                    const Tensor& cu_seqlens, const Optional& seed,
                                                    double scale, double dropout_p) {
  const Arguments arguments(q, k, v, bias, cu_seqlens, seed, scale, dropout_p);
  const int64_t heads = q.size(1), pairs = arguments.call.pairs;
  Optional dlogits;
  if (grad_logits) {
    dlogits = pairs_of(*grad_logits, heads, pairs, "grad_logits must be float32 [H, P]");
  }
  const auto like_q = [&] { return torch::stable::new_empty(q, {q.size(0), heads, q.size(2)}); };
  Tensor dq = like_q(), dk = like_q(), dv = like_q();
  Tensor dbias = torch::stable::new_empty(bias, {heads, pairs});
  pair_bias_attention_backward(
      arguments.call, arguments.molecules,
      {atoms_of(grad, q, "grad must be like q"),
       dlogits ? dlogits->const_data_ptr<float>() : nullptr, atoms_of(dq, q, ""),
       atoms_of(dk, q, ""), atoms_of(dv, q, ""), dbias.mutable_data_ptr<float>()});
  return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace collamo::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(collamo_kernels, m) {
  m.def(
      "pair_bias_attention(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor cu_seqlens, "
      "Tensor? seed, float scale, float dropout_p, bool with_logits) "
      "-> (Tensor out, Tensor logits)");
  m.def(
      "pair_bias_attention_(Tensor q, Tensor k, Tensor v, Tensor(a!) bias, Tensor cu_seqlens, "
      "Tensor? seed, float scale, float dropout_p) -> Tensor");
  m.def(
      "pair_bias_attention_backward(Tensor grad, Tensor? grad_logits, Tensor q, Tensor k, "
      "Tensor v, Tensor bias, Tensor cu_seqlens, Tensor? seed, float scale, float dropout_p) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(collamo_kernels, CPU, m) {
  m.impl("pair_bias_attention", TORCH_BOX(&collamo::cpu::forward));
  m.impl("pair_bias_attention_", TORCH_BOX(&collamo::cpu::forward_in_place));
  m.impl("pair_bias_attention_backward", TORCH_BOX(&collamo::cpu::backward));
}
