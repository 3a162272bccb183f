"""Counts and times for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from collamo.chem.features import MoleculeFeatures

#: Other paths are counted together, so that a scanner makes no thousand of rows.
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)


class Metrics:
    """What ``/metrics`` tells, of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "collamo_requests", "Requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "collamo_request_seconds",
            "Time of a request.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "collamo_first_piece_seconds",
            "Time until an answer begins.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "collamo_requests_in_flight", "Requests that are answered or wait.", registry=registry
        )
        self.tokens = Counter("collamo_tokens", "Tokens.", ["kind"], registry=registry)
        self.conformers = Counter(
            "collamo_conformers",
            "Conformers that were read, by method.",
            ["method"],
            registry=registry,
        )
        self.rejected = Counter(
            "collamo_rejected_molecules", "Molecules that could not be read.", registry=registry
        )

    def request(self, scope: Mapping[str, Any], status: int | None, seconds: float) -> None:
        """Count a request; without a status the client has gone before its answer."""
        path = scope["path"] if scope["path"] in PATHS else "other"
        self.requests.labels(path, str(status or 499)).inc()
        self.seconds.labels(path).observe(seconds)

    def molecules(self, features: Iterable[MoleculeFeatures]) -> None:
        """Count where the conformers of a request come from."""
        for each in features:
            self.conformers.labels(each.conformer.method).inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus' form."""
        return generate_latest(self._registry)
