"""``collamo doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.errors import CollamoError, MissingDependencyError, UsageError


@command(
    open_ended=True,
    epilog="With --plan the options of `collamo train` hold: --llm NAME_OR_PATH, --unimol PATH, "
    "--gin PATH.",
)
def doctor(
    context: typer.Context,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Recipe: show what it trains, the memory it takes, and which GPU it fits."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="With --plan: h100, a100-40gb … or GiB. Default: the one here. Without a plan, "
            "`--gpu here` runs every kernel of the attention against the reference, two minutes."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(help="With --plan: how many GPUs train together.")] = 1,
    strategy: Annotated[
        str,
        typer.Option(help="With --gpus: ddp or fsdp2, a file of configs/accelerate."),
    ] = "ddp",
) -> None:
    """Say what is installed, what is missing, and what each missing piece would give."""
    if plan is not None:
        from collamo.cli.plan import show_plan

        show_plan(plan, gpu, context.args, gpus, strategy)
        return
    if gpus != 1:
        raise UsageError("--gpus: only with --plan RECIPE")
    if gpu == "here":
        _check_gpu()
        return
    if gpu is not None:
        raise UsageError("--gpu: only with --plan RECIPE, or `--gpu here`")
    if context.args:
        raise UsageError(f"{context.args[0]}: only with --plan RECIPE")
    _show_installation()


def _check_gpu() -> None:
    from collamo.doctor import check_kernels

    found = check_kernels()
    for name, error in found.items():
        print(f"right  {name}" if error is None else f"WRONG  {name}: {error}")
    wrong = sum(error is not None for error in found.values())
    if wrong:
        raise CollamoError(
            f"{wrong} of {len(found)} configurations are wrong on this GPU; they are not taken "
            "from now on. Please report them."
        )


def _show_installation() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from collamo.doctor import about, examine, healthy

    checks = examine()
    table = Table(title=about(), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what", "gives", "found, or how to get it"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "ok" if check.evidence else "MISSING" if check.required else "–"
        table.add_row(mark, check.name, check.gives, check.evidence or check.fix)
    Console(markup=False).print(table)  # the brackets of 'collamo[train]' are no markup
    if not healthy(checks):
        missing = [c.name for c in checks if c.required and not c.evidence]
        raise MissingDependencyError(f"required packages are missing: {', '.join(missing)}")
