"""Open a checkpoint and serve it until told to stop."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from collamo.chem.conformer_workers import usable_processors
from collamo.errors import UsageError
from collamo.inference.assistant import load
from collamo.inference.checkpoint import find_checkpoint
from collamo.inference.serve.app import Service, build_app
from collamo.inference.serve.engine import Engine
from collamo.inference.serve.gate import LOOPBACK, Limits
from collamo.inference.serve.molecule_reader import MoleculeReader
from collamo.inference.serve.transformers_engine import TransformersEngine
from collamo.model import CollamoConfig, CollamoProcessor
from collamo.model.merge import merge

#: Where the key is looked for; one on the command line is seen by every user of the machine.
API_KEY = "COLLAMO_API_KEY"
#: Our choice: seconds that answers get to end once the server is told to stop.
GRACE = 30


@dataclass(frozen=True)
class Options:
    """How a checkpoint is served; `Limits` of requests beside it.

    Attributes
    ----------
    host, port
        Where; another host than this machine needs an `api_key`.
    api_key
        What clients must send; None takes ``COLLAMO_API_KEY``.
    name
        The model's, in requests and answers.
    engine
        "transformers" or "vllm".
    batch_size
        Answers made together.
    conformer_seconds
        Most processor time for one conformer [s]; then 3D is left out.
    dtype, device
        As for `collamo.load`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str = "collamo"
    engine: str = "transformers"
    batch_size: int = 8
    conformer_seconds: float = 10.0
    dtype: str | None = None
    device: str | None = None
    limits: Limits = field(default_factory=Limits)


def serve(checkpoint: str | Path | None, options: Options) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM, after which running answers end in peace.

    Raises
    ------
    UsageError
        For an address that others reach, without a key.
    MissingDependencyError, CollamoError
        As `collamo.load`.
    """
    key = options.api_key or os.environ.get(API_KEY) or None
    local = options.host in LOOPBACK
    if not local and key is None:
        raise UsageError(
            f"others reach {options.host}: set {API_KEY}, or give --api-key, which they must send"
        )
    folder = find_checkpoint(checkpoint)
    service = open_service(folder, options)
    app = build_app(service, api_key=key, hosts=LOOPBACK if local else None)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="info",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        # Sockets, those included that only look at /health.
        limit_concurrency=4 * options.limits.in_flight,
    )


def open_service(folder: Path, options: Options) -> Service:
    """Load the model, with an engine around it."""
    # Before the model: a worker is a copy of this process.
    reader = MoleculeReader(seconds=options.conformer_seconds, workers=usable_processors())
    engine, processor, modalities = _ENGINES[options.engine](folder, options)
    reader.seed = processor.feature_extractor.conformer_seed
    return Service(
        engine,
        processor,
        reader,
        name=options.name,
        modalities=modalities,
        limits=options.limits,
        created=int(folder.stat().st_mtime),
    )


_Opened = tuple[Engine, CollamoProcessor, Sequence[str]]


def _transformers(folder: Path, options: Options) -> _Opened:
    assistant = load(folder, dtype=options.dtype, device=options.device)
    engine = TransformersEngine(assistant, options.batch_size)
    return engine, assistant.processor, assistant.model.config.modalities


def _vllm(folder: Path, options: Options) -> _Opened:
    """Give vLLM a whole model: an adapter's is written, and goes with the server."""
    from collamo.inference.serve.vllm_engine import VllmEngine

    if options.device is not None:
        raise UsageError("--device is for --engine transformers; vLLM takes the GPU that is there")
    if (folder / "adapter_config.json").is_file():
        temporary = tempfile.mkdtemp(prefix="collamo-merged-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        (folder,) = merge(folder, Path(temporary, "model"))
    processor = CollamoProcessor.from_pretrained(folder)
    engine = VllmEngine(folder, processor, options.batch_size, options.dtype)
    return engine, processor, CollamoConfig.from_pretrained(folder).modalities


_ENGINES = {"transformers": _transformers, "vllm": _vllm}
