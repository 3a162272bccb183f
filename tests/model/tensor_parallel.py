"""One rank of test_tensor_parallel.py: a saved model, cut among the ranks, beside the whole one.

torchrun --nproc-per-node 2 tests/model/tensor_parallel.py FOLDER INPUTS
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from collamo.model import CollamoForConditionalGeneration

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def rows(layer):
    """Of its weight, those that this rank holds."""
    weight = layer.weight
    return len(getattr(weight, "to_local", lambda: weight)())


@torch.no_grad()
def main(folder, path):
    """Compare, and save what was cut: assertions are the exit code."""
    warnings.simplefilter("ignore", FutureWarning)  # this name serves all supported versions
    dist.init_process_group("gloo")
    inputs = torch.load(path, weights_only=True)
    whole = CollamoForConditionalGeneration.from_pretrained(folder)
    cut = CollamoForConditionalGeneration.from_pretrained(folder, tp_plan="auto")
    for name in ("lm_head", "model.language_model.layers.0.mlp.up_proj"):
        half = rows(whole.get_submodule(name)) // dist.get_world_size()
        assert rows(cut.get_submodule(name)) == half, name
    # Sums over two halves: rounding.
    torch.testing.assert_close(cut(**inputs).logits, whole(**inputs).logits, atol=1e-5, rtol=0)
    assert torch.equal(whole.generate(**inputs, **GREEDY), cut.generate(**inputs, **GREEDY))
    cut.save_pretrained(Path(folder) / "again")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
