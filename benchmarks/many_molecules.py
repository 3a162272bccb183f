"""Training on more and more molecules: memory, time to the first step, start of an epoch.

    python benchmarks/many_molecules.py moses_train.csv.gz 5000 50000 1000000

Linux only. The first 5,000 molecules are prepared without conformers; further ones are the same
again under other row numbers, shard by shard: what grows with the data is the same as with others,
and preparing a million takes hours. Each size is trained in a process of its own, 20 steps of 16
molecules of the smallest model with two loader workers; then 20,000 molecules are read in the order
of the next epoch. Rows go to ``results/<machine>/many_molecules.csv``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import measurements
import numpy as np
import preparation
import pyarrow as pa
import pyarrow.parquet as pq

from collamo.data.manifest import MANIFEST, file_entry
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.data.sharding import sidecar_of
from collamo.data.shards import SPLITS, shard_name, table_writer, tasks_path
from collamo.files import write_text

PREPARED = 5_000
NAMES = "--tasks.names=[motif_count, property_2d]"  # without conformers
STEPS, BATCH, WORKERS, READ = 20, 16, 2, 20_000
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = [
    *("--model.selfies_config.hidden_size=16", "--model.gin_config={num_layers: 2}"),
    *("--model.gin_config.hidden_size=16", "--model.unimol_config={num_layers: 1, num_heads: 2}"),
    *("--model.unimol_config.hidden_size=16", "--model.unimol_config.intermediate_size=16"),
    *("--model.projector_config.num_layers=1", "--model.projector_config.hidden_size=16"),
    *("--model.projector_config.num_heads=2", "--model.projector_config.intermediate_size=16"),
]


def main() -> None:
    """Measure each size, print the figures with the line through them, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("molecules", type=int, nargs="+", help="multiples of 1,000")
    parser.add_argument("--folder", type=Path, default=Path("build/many_molecules"))
    arguments = parser.parse_args()
    first = arguments.folder / str(PREPARED)
    if not (first / MANIFEST).exists():
        prepare(arguments.source, first, PrepareOptions(limit=PREPARED, conformers=False))
    _language_model(first, arguments.folder)
    rows, peaks = [], []
    for count in arguments.molecules:
        folder = arguments.folder / str(count)
        if not (folder / MANIFEST).exists():
            repeat(first, folder, count)
        mapping = time.monotonic()
        _ = PreparedData.open(folder).mapped
        mapping = time.monotonic() - mapping
        found = _measured(folder, arguments.folder)
        rows += list(_rows(count, found, mapping))
        peaks.append(found["read_mib"])
    print(measurements.append("many_molecules", rows))
    if len(peaks) > 1:
        slope, start = np.polyfit(arguments.molecules, peaks, 1)
        print(f"memory: {start:.0f} MiB + {1e6 * slope:.0f} MiB a million molecules")
        print(f"of 10,000,000, by that line: {start + 1e7 * slope:.0f} MiB")


def repeat(source: Path, out: Path, count: int) -> None:
    """Write a prepared folder of `count` molecules, those of `source` over and over."""
    data = PreparedData.open(source)
    size = data.manifest.options.shard_size
    out.mkdir(parents=True, exist_ok=True)
    of_row = pq.read_table(source / "splits.parquet")
    tasks = {split: pq.read_table(tasks_path(source, split)) for split in SPLITS}
    files, splits = {}, []
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(table_writer(tasks_path(out, split), table.schema))
            for split, table in tasks.items()
        }
        for shard in range(count // size):
            original = shard % data.num_shards
            path, shift = out / shard_name(shard), (shard - original) * size
            table = _shifted(data.table(original), "row", shift)
            pq.write_table(table, path, compression="zstd")
            write_text(sidecar_of(path), "{}\n")
            files |= {path: len(table), sidecar_of(path): 0}
            rows = data.rows_of(original)
            splits.append(_shifted(_between(of_row, "row", rows), "row", shift))
            for split, questions in tasks.items():
                part = _between(questions, "molecule", rows)
                writers[split].write_table(_shifted(part, "molecule", shift))
    joined = pa.concat_tables(splits)
    pq.write_table(joined, out / "splits.parquet")
    files |= {tasks_path(out, split): 0 for split in SPLITS}
    files |= {out / "splits.parquet": len(joined)}
    named = joined["split"].to_pylist()
    manifest = dataclasses.replace(
        data.manifest,
        rows={"in": count, "ok": len(joined), "rejected": count - len(joined)},
        splits={split: named.count(split) for split in SPLITS},
        files={path.name: file_entry(path, number) for path, number in files.items()},
    )
    manifest.write(out / MANIFEST)


def _between(table: pa.Table, column: str, rows: tuple[int, int]) -> pa.Table:
    start, stop = np.searchsorted(table[column].to_numpy(), rows)
    return table.slice(start, stop - start)


def _shifted(table: pa.Table, column: str, shift: int) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(
        place, table.schema.field(place), pa.array(table[column].to_numpy() + shift)
    )


def _language_model(data: Path, folder: Path) -> None:
    from collamo.training.recipe import load_recipe
    from collamo.training.stages import train

    if (folder / "tiny_lm" / "final").exists():
        return
    options = [f"--data={data}", f"--output={folder / 'tiny_lm'}", "--max_steps=2"]
    options += ["--dialogues=1", "--report_to=none", "--save_strategy=no"]
    options += ["--model={hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1}"]
    options += ["--model.num_attention_heads=2", "--model.num_key_value_heads=2"]
    train(load_recipe(CONFIGS / "tiny_lm.yaml", options))


def _measured(data: Path, folder: Path) -> dict[str, float]:
    """Train and read in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(data), str(folder), str(time.time())]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def measure(data: str, folder: str, start: float) -> dict[str, float]:
    """Return memory [MiB] and times [s] of a training, of its workers and of reading."""
    from collamo.training.questions import QuestionDataset
    from collamo.training.recipe import load_recipe
    from collamo.training.sampler import EpochSampler
    from collamo.training.stages import train
    from collamo.training.trainer import StageTrainer

    found: dict[str, float] = {}
    step = StageTrainer.training_step

    def watched(self, *arguments, **named):
        result = step(self, *arguments, **named)
        found.setdefault("first_step", time.time() - start)
        found.setdefault("first_step_cpu", time.process_time())
        found["train_mib"] = size("self", "Rss")
        loaders = [path.name for path in preparation.workers()]
        found["workers_private_mib"] = max((private(loader) for loader in loaders), default=0.0)
        return result

    StageTrainer.training_step = watched
    options = [f"--data={data}", f"--output={folder}/run", f"--llm={folder}/tiny_lm/final", *SMALL]
    options += [f"--max_steps={STEPS}", "--report_to=none", "--save_strategy=no", NAMES]
    options += [f"--dataloader_num_workers={WORKERS}", f"--per_device_train_batch_size={BATCH}"]
    train(load_recipe(CONFIGS / "stage1.yaml", options))

    dataset = QuestionDataset(
        PreparedData.open(data), "train", names=None, per_molecule=2, seed=0, facts=True
    )
    sampler = EpochSampler(dataset, seed=0, batch_size=BATCH, group_by_length=True)
    sampler.epoch = 1
    begin, cpu = time.monotonic(), time.process_time()
    items = iter(sampler)
    for index in islice(items, BATCH):
        dataset[index]
    found["epoch_start"] = time.monotonic() - begin
    found["epoch_start_cpu"] = time.process_time() - cpu
    begin = time.process_time()
    count = sum(dataset[index] is not None for index in islice(items, READ))
    found["item_cpu"] = (time.process_time() - begin) / count
    found["read_mib"] = size("self", "Rss")
    found["anonymous_mib"] = size("self", "Anonymous")
    return found


def size(process: str, *keys: str) -> float:
    """Return the sum of some sizes of a process's memory [MiB]."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sum(sizes[key] for key in keys) / 1024


def private(process: str) -> float:
    """Return what a process has to itself [MiB]."""
    return size(process, "Private_Clean", "Private_Dirty")


def _rows(count: int, found: dict[str, float], mapping: float) -> Iterator[dict[str, object]]:
    common = {"threads": 1, "rival": "ours", "rounds": 1}
    load = Path("/proc/loadavg").read_text().split()[0]
    beside = f"beside a load of {load}"
    what = f"{count:,} molecules"
    yield {
        **common,
        "workload": f"{what}: first step",
        "median_ms": f"{1e3 * found['first_step']:.4g}",
        "extra_mib": f"{found['train_mib']:.0f}",
        "note": f"{found['first_step_cpu']:.1f} s of processor time; a worker's own memory "
        f"{found['workers_private_mib']:.0f} MiB; mapped files opened or written in "
        f"{mapping:.1f} s; {beside}",
    }
    yield {
        **common,
        "workload": f"{what}: start of an epoch",
        "median_ms": f"{1e3 * found['epoch_start']:.4g}",
        "extra_mib": f"{found['read_mib']:.0f}",
        "note": f"{found['epoch_start_cpu']:.2f} s of processor time; memory after reading "
        f"up to {READ:,} more, {found['anonymous_mib']:.0f} MiB of it anonymous; "
        f"{1e3 * found['item_cpu']:.2f} ms of processor time each; {beside}",
    }
    print(what, json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
    else:
        main()
