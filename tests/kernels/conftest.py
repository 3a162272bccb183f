"""Backends under test: each is a parameter, and one that is required must not be skipped."""

import pytest

from collamo_kernels.backends import BACKENDS, BackendError
from collamo_kernels.testing import required_backends


@pytest.fixture
def serves():
    """``serves(backend, call)``: run the call; skip where the backend refuses, unless required."""

    def run(backend, call):
        try:
            return call()
        except BackendError as refusal:
            if backend in required_backends():
                raise
            pytest.skip(str(refusal))

    return run


def pytest_generate_tests(metafunc):
    """Give every test that takes ``<op>_backend`` one run per backend of that operation."""
    for op, rows in BACKENDS.items():
        name = f"{op}_backend"
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [row.name for row in rows])
