"""SIGTERM: a cluster takes its machine back, and the work of the last steps is kept."""

from __future__ import annotations

import os
import signal
import threading

import torch
import torch.distributed
from transformers import TrainerCallback


class StopOnTermination(TrainerCallback):
    """On SIGTERM finish the step, write its checkpoint and stop.

    A second SIGTERM ends the process at once, as it does whenever no step is running.
    """

    def __init__(self) -> None:
        self.stopped = False
        """Whether a step was the last because of the signal; its checkpoint is written then."""
        self._signalled = False
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
        if not torch.distributed.is_initialized():
            return self._signalled
        flag = torch.tensor(int(self._signalled), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)
