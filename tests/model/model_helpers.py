"""Builds small random models; shared by the tests of this folder."""

import copy

import torch
from transformers import LlamaForCausalLM

from collamo.data.batch import MoleculeBatch
from collamo.model import build_model, tiny_llama_config, train_tokenizer

SMALL = {
    "selfies_config.hidden_size": 24,
    "gin_config": {"num_layers": 2, "hidden_size": 24},
    "unimol_config": {
        "num_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "num_gaussians": 8,
    },
    "projector_config": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 48,
        "num_query_tokens": 3,
        "num_gaussians": 8,
        "hop_buckets": 16,
    },
}

#: One layer of everything, for tests in which the time is that of a compiler.
SMALLEST = {
    "gin_config": {"num_layers": 1, "hidden_size": 16},
    "unimol_config": {
        "num_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "num_gaussians": 4,
    },
    "projector_config": {
        "num_layers": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "num_query_tokens": 3,
        "num_gaussians": 4,
    },
}


def build(tokenizer, overrides=None, **llama):
    """Return a fresh random model and its processor."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,  # answers far from uniform, rounding not amplified
    }
    llm = LlamaForCausalLM(tiny_llama_config(len(tokenizer), **{**sizes, **llama}))
    flat = copy.deepcopy({**SMALL, **(overrides or {})})
    return build_model((llm, copy.deepcopy(tokenizer)), flat, preset="tiny")


def batches_of_all_sizes(processor, features):
    """Inputs of a model, each batch of other numbers of prompts, tokens, atoms and bonds."""
    names = list(features)
    choices = (names, names[:3], names[1:4], names[2:5], [names[1]] * 2, names[3:], names[::2])
    questions = [processor.prompt("What is it?" + " Tell me." * i) for i in range(11)]
    return [
        processor(questions[i : i + len(chosen)], [features[name] for name in chosen])
        for i, chosen in enumerate(choices)
    ]


def compare_steps(compiled, eager, batches):
    """Hold a compiled model's losses, gradients and buffers to those of its eager copy."""
    mine, theirs = dict(compiled._orig_mod.named_parameters()), dict(eager.named_parameters())
    for step, inputs in enumerate(batches):
        labels = inputs["input_ids"].clone()
        labels[:, :-3] = -100
        losses = []
        for run in (eager, compiled):
            torch.manual_seed(step)
            run.zero_grad()
            losses.append(run(**inputs, labels=labels, skip_logits=True).loss)
            losses[-1].backward()
        torch.testing.assert_close(*losses)
        for name, parameter in mine.items():
            other = theirs[name].grad
            torch.testing.assert_close(
                parameter.grad, other, msg=lambda text, n=name: f"{n}: {text}"
            )
        # The statistics of batch norms, which must not see padding.
        for own, other in zip(compiled._orig_mod.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(own, other)


def molecules_of(inputs):
    """The molecules among a model's inputs."""
    return MoleculeBatch.from_tensors(inputs)


def foreign_tokenizer():
    """A tokenizer that never heard of `<mol>` and has no token for padding."""
    known = train_tokenizer(["How many atoms?"] * 5, 280)
    backend = known._tokenizer.to_str().replace("<mol>", "<other>")
    return type(known)(
        tokenizer_object=type(known._tokenizer).from_str(backend),
        pad_token=None,
        bos_token="<s>",
        eos_token="</s>",
    )


def pretrain_gnns(width=6, layers=2):
    """A state dict with the names of pretrain-gnns' GNN(gnn_type="gin")."""
    torch.manual_seed(3)
    weights = {"x_embedding1.weight": (120, width), "x_embedding2.weight": (3, width)}
    for i in range(layers):
        shapes = {"mlp.0.weight": (2 * width, width), "mlp.0.bias": (2 * width,)}
        shapes |= {"mlp.2.weight": (width, 2 * width), "mlp.2.bias": (width,)}
        shapes |= {"edge_embedding1.weight": (6, width), "edge_embedding2.weight": (3, width)}
        weights |= {f"gnns.{i}.{name}": shape for name, shape in shapes.items()}
        for name in ("weight", "bias", "running_mean", "running_var"):
            weights[f"batch_norms.{i}.{name}"] = (width,)
    return {name: torch.rand(shape) for name, shape in weights.items()}
