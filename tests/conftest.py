"""What every test gets: no network, a fixed seed, the way to the larger test data."""

import os
from pathlib import Path

# Before any test imports transformers or wandb-like reporters: tests never reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

TEST_DATA = os.environ.get("COLLAMO_TEST_DATA")


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


def _folder(name: str) -> Path:
    if not TEST_DATA:
        pytest.skip(f"COLLAMO_TEST_DATA is not set: it names the folder that holds {name}/")
    folder = Path(TEST_DATA).resolve() / name
    if not folder.is_dir():
        pytest.fail(f"COLLAMO_TEST_DATA is {TEST_DATA}, but there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files; tests that ask for it skip where it is absent."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of official outputs; tests that ask for it skip where it is absent."""
    return _folder("golden")
