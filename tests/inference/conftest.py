"""A trained model, and what asks it."""

import pytest
from trained import trained

import collamo


@pytest.fixture(scope="session")
def run():
    return trained()


@pytest.fixture(scope="session")
def assistant(run):
    return collamo.load(run.checkpoint)
