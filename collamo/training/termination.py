"""SIGTERM: a cluster takes its machine back, and the work of the last steps is kept."""

from __future__ import annotations

import os
import signal
import threading

import torch
import torch.distributed
from transformers import TrainerCallback

from collamo.training.processes import is_connected


class StopOnTermination(TrainerCallback):
    """On SIGTERM finish the step, write its checkpoint and stop.

    A second SIGTERM ends the process at once, as it does whenever no step is running.
    """

    def __init__(self) -> None:
        self.stopped = False
        """Whether a step was the last because of the signal; its checkpoint is written then."""
        self._signalled = False
        self._asked: _Question | None = None
        self._process = os.getpid()
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_begin(self, args, state, control, **kwargs):
        """Listen from now on; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint and the end, in the same step of every process."""
        if self._signalled_anywhere(args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Listen no more; a signal that came after the last step ends the process here."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
        if self._signalled and not self.stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != self._process:  # a worker of the data loader, which inherits this
            os.kill(os.getpid(), signal.SIGTERM)
        self._signalled = True

    def _signalled_anywhere(self, device: torch.device) -> bool:
        """Whether any process had the signal: one step late, so that none waits for its device."""
        if not is_connected():
            return self._signalled
        before, self._asked = self._asked, _Question(self._signalled, device)
        return before is not None and before.answer()


class _Question:
    """Does it hold for any process? Asked now, and answered when the device has come by."""

    def __init__(self, here: bool, device: torch.device):
        flag = torch.tensor(int(here), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        self._flag, self._copied = flag.to("cpu", non_blocking=True), None
        if device.type != "cpu":
            self._copied = torch.Event(device)
            self._copied.record()

    def answer(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)
