"""The model under torch.compile: one graph, whatever the sizes of a batch.

What takes longer, with torch's own code generator, is in compiled.py: `make test-compile`.
"""

import copy
import logging

import pytest
import torch
from model_helpers import SMALLEST, batches_of_all_sizes, build, compare_steps
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = pytest.mark.slow

#: Graphs for batches of ever new sizes: of the first one's, of any, and of any that differ where
#: two of the second's happened to be equal.
GRAPHS = 3


@pytest.fixture
def own(tokenizer):
    torch._dynamo.reset()
    # Of use to torch's own tools alone; written out for pytest it takes as long as the compiling.
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)
    return build(tokenizer, SMALLEST, num_hidden_layers=1)


@torch.no_grad()
def test_evaluation_is_one_graph(own, features):
    """fullgraph=True raises at a graph break."""
    model, processor = own
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.eval(), fullgraph=True, backend=counter)
    batches = batches_of_all_sizes(processor, features)
    for inputs in batches:
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
    assert counter.frame_count <= GRAPHS
    lost = {**batches[0], "molecule_valid": batches[0]["molecule_valid"].clone()}
    lost["molecule_valid"][1] = False
    with pytest.raises(RuntimeError, match="its molecules disagree in number"):
        compiled(**lost)


def test_a_training_step_is_one_graph(own, features):
    """With every encoder learning, the batch norms of one included."""
    model, processor = own
    counter = CompileCounterWithBackend("aot_eager")
    eager = copy.deepcopy(model.train())
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    compare_steps(compiled, eager, batches_of_all_sizes(processor, features))
    assert counter.frame_count <= GRAPHS
