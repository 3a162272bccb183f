"""The example that trains with trl, run with trl itself."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trained import trained

import collamo

EXAMPLE = Path(__file__).parents[1] / "examples/sft_with_trl.py"


@pytest.mark.slow
def test_it_trains_on_answers_and_what_it_saves_opens(tmp_path):
    pytest.importorskip("trl", reason="not installed: make test-clients")
    run, example = trained(), runpy.run_path(str(EXAMPLE))
    start, end = run.folder / "stage1" / "final", tmp_path / "run"
    arguments = ["--data", str(run.data), "--checkpoint", str(start), "--output", str(end)]
    trainer = example["main"]([*arguments, "--steps", "2", "--batch", "4"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < float(loss) < 20 for loss in losses)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, end))
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert any("mol_projector" in name for name in moved)
    assert any("language_model" in name for name in moved)
    assert not any("graph_encoder" in name or "conformer_encoder" in name for name in moved)
    assert isinstance(collamo.load(end).ask("CCO", "How many hydroxyl groups?"), str)
    # trl computes the loss under the output layer: the labels are those of the answers.
    rows = [trainer.train_dataset[i] for i in range(2)]
    batch = trainer.data_collator(rows)
    model = trainer.model.eval()
    with torch.no_grad():
        ours = model(**batch).loss
        theirs = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
