"""Uni-Mol as its formulas stand, on the padded batch: the yardstick of tests and benchmarks.

Every tensor of pairs is made whole, [B,H,T,T] or [B,T,T,K], as the official implementation does:
padding is computed and hidden by -inf.
"""

import torch
import torch.nn.functional as F


def unimol_reference(encoder, tokens, distance, edge_type, keep=True):
    """Return every level [B,T,C], the initial bias and each layer's logits [B,H,T,T].

    `encoder` lends its weights. Rows of padding carry no meaning. Without `keep` only the last
    level and the last logits are returned.
    """
    padding = tokens == 0
    hidden = padding[:, None, None, :]
    psi = gaussians(encoder.gbf, distance, edge_type)
    head = encoder.gbf_proj
    bias = head.linear2(F.gelu(head.linear1(psi))).permute(0, 3, 1, 2)
    logits = [bias.masked_fill(hidden, float("-inf"))]
    transformer = encoder.encoder
    x = transformer.emb_layer_norm(encoder.embed_tokens(tokens)).masked_fill(padding[..., None], 0)
    levels = [x]
    for layer in transformer.layers:
        attended, new = attend(layer.self_attn, layer.self_attn_layer_norm(x), logits[-1])
        x = x + attended
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        logits = [*logits, new] if keep else [new]
        levels = [*levels, x] if keep else [x]
    levels[-1] = transformer.final_layer_norm(x)
    return levels, logits


def gaussians(gbf, distance, edge_type):
    """[B,T,T] Å, [B,T,T] int64 → [B,T,T,K]: normal densities of mul·r + bias."""
    scaled = gbf.mul(edge_type) * distance[..., None] + gbf.bias(edge_type)
    sigma = gbf.stds.weight.view(-1).abs() + gbf.min_sigma
    z = (scaled.expand(*distance.shape, len(sigma)) - gbf.means.weight.view(-1)) / sigma
    return torch.exp(-0.5 * z**2) / ((2 * torch.pi) ** 0.5 * sigma)


def attend(attention, x, bias):
    """[B,T,C], [B,H,T,T] → output [B,T,C], logits q·k/√d + bias [B,H,T,T]."""
    heads = attention.num_heads
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in attention.in_proj(x).chunk(3, dim=-1)
    )
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    out = F.softmax(logits, dim=-1) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2)), logits
