"""SIGKILL at random moments and at every kind of write; SIGTERM and SIGINT in the middle."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trials import SAME, SILENT, UNCLEAR, Command, Trial

Read = Callable[[Path], object]
#: Where an aimed kill strikes: before or after the nth call of each.
AIMS = (
    *(
        "transformers.modeling_utils.safe_save_file",
        "torch.save",
        "os.replace",
        "os.fsync",
        "shutil.rmtree",
    ),
    *("collamo.training.callbacks.write_manifest", "collamo.training.callbacks.write_settings"),
    *("collamo.training.output.replacing_folder", "collamo.model.modeling.write_checksums"),
)


def aimed(name: str, nth: int, after: bool) -> Callable[[], None]:
    """Return what has the process killed before, or after, the `nth` call of a function."""

    def arm() -> None:
        module, _, attribute = name.rpartition(".")
        place = __import__(module, fromlist=[attribute])
        call, count = getattr(place, attribute), 0

        def killing(*args, **kwargs):
            nonlocal count
            count += 1
            if count == nth and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if count == nth and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(place, attribute, killing)

    return arm


def kill(
    command: Callable[[Path], list[str]],
    read: Read,
    expected: object,
    draw: random.Random,
    scratch: Path,
    kills: int,
    longest: float,
) -> Iterator[Trial]:
    """Kill a training again and again, half of the times at a write; when it has got to its end,
    look at what it made, and begin anew until there were `kills`.

    A run after a kill goes on from what that one left. `longest` are the seconds until a random
    kill.
    """
    out, since = scratch / "killed", []
    done = 0
    while done < kills or since:
        arm, wait, fault = None, 0.0, "none: let finish"
        if done < kills:
            if done % 2:
                name, nth, after = draw.choice(AIMS), draw.randint(1, 6), draw.random() < 0.5
                arm = aimed(name, nth, after)
                fault = f"{'after' if after else 'before'} call {nth} of {name}"
            else:
                wait = draw.uniform(0, longest)
                fault = f"after {wait:.2f} s"
        process = Command([*command(out), "--resume"], scratch, arm)
        if wait:
            time.sleep(wait)
            process.signal(signal.SIGKILL)
        ended = process.wait()
        left = _read(read, out)
        if left is not None and left != expected:
            yield Trial("kill -9", "training", fault, SILENT, "what it left reads as whole")
        if ended.code == -signal.SIGKILL:
            done += 1
            since.append(fault)
            continue
        verdict = SAME if ended.code == 0 and left == expected else UNCLEAR
        for each in since:  # nothing where an aim was not reached
            yield Trial("kill -9", "training", each, verdict, " / ".join(ended.errors))
        since = []
        shutil.rmtree(out)


def stop(
    command: Callable[[Path], list[str]], read: Read, expected: object, scratch: Path
) -> Iterator[Trial]:
    """SIGTERM and SIGINT, once and twice, in the middle of a training; then go on."""
    for number, times, codes in (
        (signal.SIGTERM, 1, (143,)),
        (signal.SIGTERM, 2, (143, -15)),
        (signal.SIGINT, 1, (130,)),
        (signal.SIGHUP, 1, (-1,)),
    ):
        out = scratch / "stopped"
        process = Command(command(out), scratch)
        log = out / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.runs():
            time.sleep(0.01)
        for _ in range(times):
            process.signal(number)
        ended = process.wait()
        fault = f"{number.name} × {times}"
        if ended.code not in codes or "Traceback" in ended.err:
            yield Trial("signals", "training", fault, UNCLEAR, f"exit code {ended.code}")
        again = Command([*command(out), "--resume"], scratch).wait()
        same = again.code == 0 and _read(read, out) == expected
        yield Trial("signals", "training", fault, SAME if same else SILENT, " ".join(again.errors))
        shutil.rmtree(out)


def _read(read: Read, out: Path) -> object:
    try:
        return read(out)
    except Exception:
        return None
