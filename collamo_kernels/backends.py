"""The one place that chooses the backend of a call, and says why the others were not taken.

Every operation has one row per implementation in `BACKENDS`, best first. A row names a module with
two functions of a checked call, such as `CoattentionCall`: ``unsupported(call)`` returns the
reason why the implementation cannot serve it, or None, and ``run(call)`` computes the result. A
module imports an optional package when a call needs it, so that it costs nothing until somebody
wants it.

Three choices are made elsewhere, because they are not between backends that a call could name:

- `coattention.shared` chooses the form of a Φ that layers share, before any of them is called
- `radial.op.serves`: whether the knots of a table are worked out by csrc or by PyTorch, which a
  backend that reads the table does not care about
- `radius_graph` takes torch-cluster for large structures; it is no operation with a definition and
  backends, and its edges are the same
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

Call = TypeVar("Call")


class BackendError(RuntimeError):
    """No implementation, or not the one asked for by name, can serve the input."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation: its public name and the module that holds it."""

    name: str
    module: str

    def load(self) -> ModuleType:
        """Import the implementing module."""
        # torch.compile can trace a look-up of what is imported already, but not an import.
        return sys.modules.get(self.module) or importlib.import_module(self.module)


BACKENDS: dict[str, tuple[Backend, ...]] = {
    "coattention": (
        Backend("triton", "collamo_kernels.coattention.triton.backend"),
        Backend("cpu", "collamo_kernels.coattention._cpu"),
        Backend("reference", "collamo_kernels.coattention.reference"),
    ),
    "pair_bias_attention": (
        Backend("triton", "collamo_kernels.pair_bias_attention._triton"),
        Backend("cpu", "collamo_kernels.pair_bias_attention._cpu"),
        Backend("reference", "collamo_kernels.pair_bias_attention.reference"),
    ),
    "shortest_paths": (
        Backend("cuda", "collamo_kernels.shortest_paths._cuda"),
        Backend("cpu", "collamo_kernels.shortest_paths._cpu"),
        Backend("reference", "collamo_kernels.shortest_paths.reference"),
    ),
    "pairwise_distances": (
        Backend("triton", "collamo_kernels.pairwise_distances._triton"),
        Backend("cpu", "collamo_kernels.pairwise_distances._cpu"),
        Backend("reference", "collamo_kernels.pairwise_distances.reference"),
    ),
    "gaussian_basis": (
        Backend("cpu", "collamo_kernels.gaussian_basis._cpu"),
        Backend("reference", "collamo_kernels.gaussian_basis.reference"),
    ),
    "neighbour_sum": (
        Backend("cpu", "collamo_kernels.neighbour_sum._cpu"),
        Backend("reference", "collamo_kernels.neighbour_sum.reference"),
    ),
}


# What `backend=None` stands for; None: the best that can serve the input.
_default: str | None = None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Inside a ``with``, run every operation that names no backend on this one, in all threads.

    Such as "reference", to compare with plain PyTorch; None takes the best again. Operations the
    backend does not have, or cannot serve, raise as if it had been named in the call.

    Raises
    ------
    ValueError
        No operation has such a backend.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> with ck.use_backend("reference"):
    ...     distance = ck.pairwise_distances(torch.zeros(1, 2, 3))
    """
    global _default
    known = dict.fromkeys(row.name for rows in BACKENDS.values() for row in rows)
    if name is not None and name not in known:
        raise ValueError(f"backend '{name}' does not exist; choose from {_names(known)}")
    before, _default = _default, name
    try:
        yield
    finally:
        _default = before


def choose(op: str, backend: str | None, call: Call) -> Callable[[Call], Any]:
    """Return the function that runs `op` on `call`.

    Parameters
    ----------
    op
        Name of the operation, a key of `BACKENDS`.
    backend
        None takes the best that can serve the input, or what `use_backend` says; a name takes that
        one or raises.
    call
        The operation's arguments, checked: what its ``api.checked`` returns.

    Raises
    ------
    ValueError
        `backend` is not a backend of this operation.
    BackendError
        The named backend, or every backend, refuses; the message holds each reason.
    """
    refused = []
    for candidate in _candidates(op, _default if backend is None else backend):
        module = candidate.load()
        reason = module.unsupported(call)
        if reason is None:
            return module.run
        refused.append(f"backend '{candidate.name}': {reason}")
    raise BackendError("; ".join(refused))


def explain(op: str | Callable, *args: Any, **kwargs: Any) -> str:
    """Print and return every backend's answer to one call, without running it.

    >>> import torch, collamo_kernels as ck
    >>> q = torch.zeros(1, 1, 2, 8)
    >>> _ = ck.explain(ck.coattention, q, q, q)
    coattention
      triton       q is on cpu; this backend runs on a GPU (or set TRITON_INTERPRET=1)
      cpu          takes it
      reference    could also serve it
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", type(op).__name__)
    _candidates(name, None)
    api = importlib.import_module(f"collamo_kernels.{name}.api")
    bound = inspect.signature(getattr(api, name)).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    named = arguments.pop("backend")
    named = _default if named is None else named
    call = api.checked(**arguments)
    lines, taken = [name], False
    for candidate in _candidates(name, named):
        reason = candidate.load().unsupported(call)
        verdict = reason or ("could also serve it" if taken else "takes it")
        taken = taken or reason is None
        lines.append(f"  {candidate.name:<12} {verdict}")
    text = "\n".join(lines)
    print(text)
    return text


def _candidates(op: str, backend: str | None) -> tuple[Backend, ...]:
    if op not in BACKENDS:
        raise ValueError(f"operation '{op}' does not exist; the operations are {_names(BACKENDS)}")
    rows = BACKENDS[op]
    if backend is None:
        return rows
    named = tuple(row for row in rows if row.name == backend)
    if not named:
        known = _names(row.name for row in rows)
        raise ValueError(f"backend '{backend}' does not exist for {op}; choose from {known}")
    return named


def _names(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
