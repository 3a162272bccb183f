"""``collamo serve``."""

from __future__ import annotations

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
from collamo.errors import UsageError, suggest

ENGINES = ("transformers", "vllm")


@command()
def serve(
    checkpoint: CheckpointArgument = None,
    engine: Annotated[
        str, typer.Option(help="What answers: transformers, or vllm, an extra of its own.")
    ] = "transformers",
    host: Annotated[
        str, typer.Option(help="Address to serve on; one that others reach needs --api-key.")
    ] = "127.0.0.1",
    port: PortOption = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(help="What clients must send. Default: COLLAMO_API_KEY, which no ps shows."),
    ] = None,
    model_name: Annotated[str, typer.Option(help="The model's, in requests.")] = "collamo",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = 8,
    time_limit: TimeOption = 10.0,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request [bytes].")] = 256 * 1024,
    max_molecules: Annotated[int, typer.Option(min=1, help="Molecules of a request.")] = 8,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests answered or waiting; one more is a 429.")
    ] = 64,
    max_seconds: Annotated[float, typer.Option(min=1, help="Longest time of a request [s].")] = 300,
) -> None:
    """Serve a model as OpenAI's API does: /v1/chat/completions, streaming, molecules in messages.

    It is reached from this machine alone unless --host says otherwise.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"--engine {engine!r:.40} is none of {', '.join(ENGINES)}{suggest(engine, ENGINES)}"
        )
    quiet_transformers()
    from collamo.inference.serve.gate import Limits
    from collamo.inference.serve.server import Options
    from collamo.inference.serve.server import serve as run

    limits = Limits(max_body, molecules=max_molecules, in_flight=max_requests, seconds=max_seconds)
    run(
        checkpoint,
        Options(
            host=host,
            port=port,
            api_key=api_key,
            name=model_name,
            engine=engine,
            batch_size=batch_size,
            conformer_seconds=time_limit,
            dtype=dtype,
            device=device,
            limits=limits,
        ),
    )
