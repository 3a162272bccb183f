"""What every test gets: no network, a fixed seed, the way to real data beside the repository."""

import os
from pathlib import Path

# Before any test imports transformers or wandb-like reporters: tests never reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder ../shared/{name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files; tests that ask for it skip where it is absent."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of official outputs; tests that ask for it skip where it is absent."""
    return _folder("golden")
