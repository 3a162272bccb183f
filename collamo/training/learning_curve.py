"""What a training logs, and the picture of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from pathlib import Path

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class LearningCurve(TrainerCallback):
    """Keep what is logged in ``log.jsonl``; at the end draw it as ``learning_curve.png``."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin the log anew; on a resume, drop the lines after the checkpoint it goes on from."""
        path = Path(args.output_dir) / "log.jsonl"
        if state.is_world_process_zero:
            kept = [e for e in read_log(path) if e["step"] <= state.global_step > 0]
            path.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one line: the step and what was logged."""
        if state.is_world_process_zero:
            with (Path(args.output_dir) / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the picture from the trainer's own history, which a resume carries on."""
        if state.is_world_process_zero:
            draw_learning_curve(
                {Path(args.output_dir).name: state.log_history},
                Path(args.output_dir) / "learning_curve.png",
            )


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the entries of a ``log.jsonl``; none where there is no file.

    A line that a full disk or a kill cut off is left out.
    """
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and "step" in entry]


def draw_learning_curve(histories: dict[str, list[dict[str, float]]], path: Path) -> bool:
    """Draw train (line) and validation (dots) loss over steps, one panel per named history, as a
    PNG.

    Returns False, and says so in the log, where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no learning curve: matplotlib is missing; pip install 'collamo[train]'")
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(histories), 3.2), layout="constrained")
    for axes, (name, history) in zip(
        figure.subplots(1, len(histories), squeeze=False)[0], histories.items(), strict=True
    ):
        for key, style, label in (("loss", "-", "train"), ("eval_loss", "o", "validation")):
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
                axes.legend()
        axes.set(title=name, xlabel="step", ylabel="loss [nats per token]")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True
