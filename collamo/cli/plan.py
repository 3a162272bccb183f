"""What a recipe would train and the memory it takes, as ``collamo doctor --plan`` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from collamo.errors import UsageError, suggest

if TYPE_CHECKING:  # at run time it would import torch
    from collamo.training.plan import Plan

GIB = 2**30
#: Memory in MiB, as nvidia-smi reports it.
GPUS = {
    **{"rtx4090": 24_564, "a10": 23_028, "l40s": 46_068, "a100-40gb": 40_960},
    **{"a100-80gb": 81_920, "h100": 81_559, "h200": 143_771},
}

#: What `Plan.passing` is, by strategy.
PASSING = {
    "ddp": "are gradients on their way to the other GPUs",
    "fsdp2": "are layers brought together while they compute",
}


def show_plan(
    path: Path, gpu: str | None, overrides: list[str], gpus: int = 1, strategy: str = "ddp"
) -> None:
    """Print the plan of the recipe at `path` for the GPU of that name; None: the one here."""
    from rich.console import Console
    from rich.table import Table

    from collamo.training.plan import plan_file, spread

    memory = gpu_memory(gpu)
    plan = spread(plan_file(path, overrides), gpus, strategy)
    each = f" of each of {plan.gpus} GPUs ({plan.strategy})" if plan.gpus > 1 else ""
    title = f"{plan.title}; memory in GiB{each}, nothing was loaded"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("part", no_wrap=True)
    for column in ("parameters", "trained", "weights", "gradients", "optimizer"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(plan):
        table.add_row(*row)
    Console(markup=False).print(table)
    print("\n".join(_summary(plan, memory)))


def gpu_memory(name: str | None) -> tuple[str, int] | None:
    """Return (name, bytes) of a GPU: a key of `GPUS`, a number of GiB, or None for the one here.

    None where there is none here; UsageError for a name that is not known.
    """
    if name is None:
        import torch

        if not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    if name.lower() in GPUS:
        return name, GPUS[name.lower()] * 2**20
    try:
        return f"{float(name):g} GiB", int(float(name) * GIB)
    except ValueError:
        known = ", ".join(GPUS)
        raise UsageError(
            f"--gpu {name!r} is none of {known}{suggest(name, GPUS)}; or give its memory in GiB"
        ) from None


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return a row for each part and their sum: numbers, those trained, GiB held."""
    return [
        (
            part.name,
            f"{part.parameters:,}",
            f"{part.trained:,}",
            *(f"{size / GIB:.2f}" for size in (part.weights, part.gradients, part.optimizer)),
        )
        for part in (*plan.parts, plan.total)
    ]


def _summary(plan: Plan, gpu: tuple[str, int] | None) -> list[str]:
    """Return the lines below the table: a step, memory, whether it fits, what was guessed."""
    batch, rows = plan.batch, plan.batch.rows * plan.accumulation
    lines = [
        f"A step of each GPU: {rows} molecules ({batch.rows} at a time), about "
        f"{rows * batch.tokens:,} tokens"
        + (f"; of all {plan.gpus}: {plan.gpus * rows} molecules." if plan.gpus > 1 else "."),
        f"Activations (an estimate): {plan.activations / GIB:.2f} GiB. With weights, gradients and "
        f"AdamW's moments, a tenth more for fragments and 1 GiB for CUDA: {plan.needed / GIB:.1f} "
        "GiB on each GPU.",
    ]
    if plan.passing:
        lines.append(f"Of it {plan.passing / GIB:.1f} GiB {PASSING[plan.strategy]}.")
    if gpu is not None:
        name, memory = gpu
        verdict = "fits" if plan.needed <= memory else "does not fit"
        lines.append(f"It {verdict} {name} ({memory / GIB:.1f} GiB).")
    else:
        fits = [name for name, mib in GPUS.items() if plan.needed <= mib * 2**20]
        lines.append(f"No GPU here. It fits: {', '.join(fits) or 'none of ' + ', '.join(GPUS)}.")
    lines += _pace(plan, None if gpu is None else gpu[0])
    return [*lines, *(f"Note: {note}." for note in plan.notes)]


def _pace(plan: Plan, gpu: str | None) -> list[str]:
    """Return how long a step should take on a GPU whose peak is known, on one and on eight."""
    from collamo.training.roofline import PEAKS, least_time, peak_of

    peak = None if gpu is None else PEAKS.get(gpu.lower()) or peak_of(gpu)
    if peak is None or plan.step is None:
        return []
    lines = []
    for gpus in (1, 8):
        parts = plan.step.seconds(peak, gpus)
        seconds, limit = least_time(parts)
        molecules = gpus * plan.batch.rows * plan.accumulation
        shares = ", ".join(f"{name} {1e3 * time:.1f}" for name, time in parts.items() if time)
        lines.append(
            f"On {gpus} × {gpu} (derived, not measured): {1e3 * seconds:.1f} ms a step, "
            f"{molecules * plan.batch.tokens / seconds:,.0f} tokens/s, "
            f"{molecules / seconds:,.0f} molecules/s, "
            f"MFU {plan.step.flops / seconds / peak.flops:.0%}, limited by {limit}. "
            f"Each alone, in ms: {shares}."
        )
    return lines
