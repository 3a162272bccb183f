"""The one progress bar, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


@contextmanager
def progress_bar(
    label: str, total: int | None, *, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar and its pace while the block runs; yields what takes how many more are done.

    `total` None: it is not known how many there are. Nothing is shown where stderr is no terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    # Rich takes FORCE_COLOR, which Jupyter sets, for a terminal.
    show = show and console.file.isatty()
    with Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[pace]:,.1f}/s",
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not show,
    ) as bar:
        task, start = bar.add_task(label, total=total, pace=0.0), monotonic()

        def advance(count: int) -> None:
            seconds = max(monotonic() - start, 1e-9)  # a clock may be coarse
            pace = (bar.tasks[task].completed + count) / seconds
            bar.update(task, advance=count, pace=pace)

        yield advance
