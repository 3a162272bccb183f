"""A trained model, and what asks it."""

import os
import tomllib
from pathlib import Path

import pytest
from trained import trained

import collamo


@pytest.fixture(scope="session")
def run():
    return trained()


@pytest.fixture(scope="session")
def assistant(run):
    return collamo.load(run.checkpoint)


@pytest.fixture(scope="session")
def entry_point(tmp_path_factory):
    """The entry point as an installed package has it, in every process of vLLM."""
    root = Path(__file__).parents[2]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    ((group, names),) = declared.items()
    folder = tmp_path_factory.mktemp("installed")
    metadata = folder / "an_entry_point-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: an-entry-point\nVersion: 0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(folder), str(root), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        patch.syspath_prepend(str(folder))
        patch.setattr("vllm.plugins.plugins_loaded", False)
        yield
