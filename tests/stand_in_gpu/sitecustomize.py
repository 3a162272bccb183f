"""A machine that says it has a GPU: for dry runs of what a real one is lent for by the minute.

Every Python process that has this folder on its path gets a `torch.cuda` that answers. Its tensors
are on the CPU, its events, streams and graphs do nothing, and Triton's kernels are launched on
nobody: their results are what was in memory, and every check of them must fail. torch.compile hands
functions back as they are. It says it is a Hopper GPU with the Triton that is doubted there.
"""

import contextlib
import types

import torch
from torch.overrides import TorchFunctionMode

NAME = "Stand-in GPU"


class OnCPU(TorchFunctionMode):
    """Takes the CPU wherever a GPU is asked for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        if function is torch.Tensor.to:
            args = tuple(map(on_cpu, args))
        return function(*args, **kwargs)


def on_cpu(value):
    """The CPU in the place of a GPU; everything else as it is."""
    name = str(value) if isinstance(value, str | torch.device) else ""
    return torch.device("cpu") if name.split(":")[0] == "cuda" else value


class Event:
    """Is reached at once."""

    def __init__(self, enable_timing=False):
        pass

    def record(self):
        """Nothing."""

    def synchronize(self):
        """Nothing."""

    def elapsed_time(self, other):
        """A millisecond, whatever lies between."""
        return 1.0


class Stream:
    """Waits for nobody."""

    def wait_stream(self, other):
        """Nothing."""


class Profile(contextlib.nullcontext):
    """Sees no kernel."""

    def __init__(self, activities=()):
        super().__init__(self)

    def events(self):
        """None."""
        return []


class Graph:
    """Replays nothing."""

    def replay(self):
        """Nothing."""


def nothing(*arguments, **options):
    """Do nothing."""


CUDA = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "get_device_name": lambda device=None: NAME,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_properties": lambda device=None: types.SimpleNamespace(multi_processor_count=132),
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 1 << 20,
    "is_current_stream_capturing": lambda: False,
    "current_stream": lambda device=None: Stream(),
    "stream": lambda stream: contextlib.nullcontext(),
    "graph": lambda graph: contextlib.nullcontext(),
    "device": lambda device: contextlib.nullcontext(),
    **dict.fromkeys(("synchronize", "reset_peak_memory_stats", "empty_cache"), nothing),
    **{"Event": Event, "Stream": Stream, "CUDAGraph": Graph},
}


def install():
    """Put all of it in place."""
    import triton

    from collamo_kernels import triton_launch
    from collamo_kernels.coattention.triton import backend
    from collamo_kernels.pairwise_distances import _triton as distances
    from collamo_kernels.shortest_paths import _cpu as paths_on_cpu
    from collamo_kernels.shortest_paths import _cuda as paths

    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    torch.profiler.profile = Profile
    torch.compile = lambda function, **options: function
    triton.__version__ = "3.6.0"
    assert triton_launch.RUN is triton.JITFunction.run  # it sees from now on that this was replaced
    triton.JITFunction.run = nothing
    for module in (backend, distances):
        module.unsupported = lambda call: None
    paths.unsupported, paths.run = lambda call: None, paths_on_cpu.run
    OnCPU().__enter__()


install()
