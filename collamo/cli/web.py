"""``collamo web``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import quiet_transformers
from collamo.cli.options import DEFAULT_CHECKPOINT
from collamo.errors import MissingDependencyError
from collamo.extras import missing_module


@command()
def web(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help=f"Folder of the trained model. {DEFAULT_CHECKPOINT}", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; one that others reach needs --password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            help="What others log in with, as collamo. Default: COLLAMO_WEB_PASSWORD, which no ps "
            "shows."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: cpu.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16. Default: that of the files.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers made together.")] = 8,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.1, help="Most processor time for one conformer [s]; then 3D is left out."
        ),
    ] = 10.0,
) -> None:
    """Ask a model in the browser: drawings, conformers, conversations, files of questions.

    The page is reached from this machine alone unless --host says otherwise, and fetches nothing
    from other hosts.
    """
    if not find_spec("gradio"):  # before another package that is missing with it is named
        raise MissingDependencyError(missing_module("gradio"))
    quiet_transformers()
    from collamo.inference.serve.server import Options
    from collamo.inference.web.server import serve_page

    options = Options(
        host=host,
        port=port,
        batch_size=batch_size,
        conformer_seconds=time_limit,
        dtype=dtype,
        device=device,
    )
    serve_page(checkpoint, options, password)
