"""Several processes that train one model over gloo, on this machine.

They are forked from one that has imported everything and trained nothing: starting takes no time,
and no thread of the tests' own process is in the way.
"""

import multiprocessing
import os
import signal
import socket

import torch

PRELOAD = ["collamo.training.stages", "collamo.cli", "peft", "transformers.trainer", "accelerate"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class RankError(Exception):
    """What went wrong in the process of number `rank`: the text of its error, by type."""

    def __init__(self, rank: int, kind: str, text: str):
        super().__init__(f"rank {rank}: {kind}: {text}")
        self.rank, self.kind, self.text = rank, kind, text


def outcomes(count, function, *arguments, environment=None, timeout=240, **options):
    """What `function` returns in each of `count` connected processes, or its `RankError`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends, processes = [], []
    for rank in range(count):
        mine, theirs = _context.Pipe(duplex=False)
        values = {
            **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1},
            **(environment or {}),
        }
        process = _context.Process(
            target=_rank, args=(theirs, values, function, arguments, options), daemon=True
        )
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    try:
        return [_outcome(rank, end, timeout) for rank, end in enumerate(ends)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_ranks(count, function, *arguments, **options):
    """What `function` returns in each of `count` connected processes; the first error is raised."""
    results = outcomes(count, function, *arguments, **options)
    for result in results:
        if isinstance(result, RankError):
            raise result
    return results


def _outcome(rank, end, timeout):
    if not end.poll(timeout):
        return RankError(rank, "timeout", f"nothing within {timeout} s")
    try:
        good, value = end.recv()
    except EOFError:
        return RankError(rank, "killed", "it ended without a word")
    return value if good else RankError(rank, *value)


def _rank(end, environment, function, arguments, options):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        end.send((True, function(*arguments, **options)))
    except BaseException as error:
        end.send((False, (type(error).__name__, str(error))))


#: What configs/accelerate/fsdp2.yaml makes of the environment.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": 2,
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def sharded_on_cpu(function, *arguments, **options):
    """Call `function` where accelerate shards on the CPU too: it does so on accelerators alone."""
    from accelerate.state import DistributedType, PartialState

    make = PartialState.__init__

    def init(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    return function(*arguments, **options)
