"""``collamo web``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import quiet_transformers
from collamo.cli.options import (
    BatchOption,
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    PortOption,
    TimeOption,
)
from collamo.errors import MissingDependencyError
from collamo.extras import missing_module


@command()
def web(
    checkpoint: CheckpointArgument = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; one that others reach needs --password.")
    ] = "127.0.0.1",
    port: PortOption = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            help="What others log in with, as collamo. Default: COLLAMO_WEB_PASSWORD, which no ps "
            "shows."
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = 8,
    time_limit: TimeOption = 10.0,
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
