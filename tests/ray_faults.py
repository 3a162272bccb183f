"""What `test_ray.py` does to the processes that make shards; Ray calls `install` in each worker."""

import os
import signal
import time
from pathlib import Path

import collamo.data.workers as workers_module
from collamo.data.records import process_row

#: A row with this SMILES kills the process it is worked on in, and one with that never ends.
CRASH, HANG = "[Xe]", "[Rn]"


def install():
    """Let rows crash, hang, take their time and leave the number of their Ray worker."""
    workers_module.process_row = _process_row  # inherited by the workers that are forked


def _process_row(row, options, absence=None):
    if row.text == CRASH:
        os.kill(os.getpid(), signal.SIGKILL)
    while row.text == HANG:
        pass
    folder = os.environ.get("COLLAMO_TEST_FAULTS")
    if folder and Path(folder, "slow").exists():
        Path(folder, f"{os.getppid()}.worker").touch()
        time.sleep(0.2)
    return process_row(row, options, absence)
