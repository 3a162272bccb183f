"""Writes small GGUF files as llama.cpp's converter does."""

import json

import gguf
import numpy as np
import torch

#: Names inside a layer: transformers' → GGUF's.
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Q8 = gguf.GGMLQuantizationType.Q8_0
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def write_gguf(path, model, tokenizer, *, architecture="llama", leave_out=(), fields=None):
    """Write a LLaMA with tied embeddings: matrices in blocks of 8 bits, norms in float32.

    `model` then holds the numbers that the blocks stand for. `leave_out` names tensors as GGUF
    does; `fields` are further ones of the header.
    """
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in (fields or {}).items():
        writer.add_string(name, value)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.named_parameters():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, number, inner = stem.split(".", 3)
            place = f"blk.{number}.{LAYER[inner]}.weight"
        else:
            place = f"{OUTER[stem]}.weight"
        if place not in leave_out:
            _add_tensor(writer, place, tensor, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer, place, tensor, config):
    values = tensor.detach().float().numpy()
    if values.ndim == 1:
        writer.add_tensor(place, values)
        return
    blocks = gguf.quantize(values, Q8)
    held = gguf.dequantize(blocks, Q8)
    tensor.data = torch.from_numpy(held.copy())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = next((n for name, n in heads.items() if f".{name}." in place), None)
    if count is not None:  # llama.cpp turns pairs of neighbours, transformers halves of a head
        rows = np.arange(len(held)).reshape(count, 2, -1).swapaxes(1, 2).reshape(-1)
        blocks = blocks[rows]
    writer.add_tensor(place, blocks, raw_dtype=Q8)


def _add_tokenizer(writer, tokenizer):
    learned = tokenizer.backend_tokenizer.to_str()
    merges = json.loads(learned)["model"]["merges"]
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
