"""What every room of evaluation's tests share: a service on this machine is reached at once."""

import pytest

from collamo.evaluation import service


@pytest.fixture(autouse=True)
def _direct_and_quick(monkeypatch):
    """No proxy of the machine stands between; the first pause is short."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(service, "FIRST_WAIT", 0.001)
