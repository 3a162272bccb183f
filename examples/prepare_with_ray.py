"""Prepare a large file on a Ray cluster: every machine writes shards, one call merges them.

    pip install 'collamo[ray]'
    python examples/prepare_with_ray.py molecules.jsonl --out /shared/prepared --pieces 64

Every machine has collamo, and sees source and `--out` under the same path (NFS, Lustre, EFS).
The result has the same bytes as `collamo prepare` on one machine; killed, it goes on where it was.
Without `--address` Ray starts on this machine alone.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

from collamo.data.options import PrepareOptions
from collamo.data.prepare import count_shards, prepare, prepare_shards
from collamo.errors import CollamoError, MissingDependencyError


def pieces(shards: int, count: int) -> list[range]:
    """Split the shards 0 … `shards` - 1 into at most `count` runs of nearly equal length.

    >>> pieces(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    count = min(count, shards)
    if not count:
        return []
    size, longer = divmod(shards, count)
    starts = [index * size + min(index, longer) for index in range(count + 1)]
    return [range(*pair) for pair in pairwise(starts)]


def prepare_on_cluster(
    source: str, out: Path, options: PrepareOptions, count: int, address: str | None = None
) -> dict:
    """Prepare `source` in `count` pieces, each on one processor of the cluster; return the rows."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError("ray is not installed; pip install 'collamo[ray]'") from error

    ray.init(address=address, log_to_driver=False)
    try:
        # A piece that was lost with its machine is done again, and keeps the shards it had written.
        task = ray.remote(num_cpus=1, max_retries=3)(prepare_shards)
        waiting = [
            task.remote(source, out, piece, options, workers=1)
            for piece in pieces(count_shards(source, options), count)
        ]
        total = len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            print(f"{total - len(waiting)} of {total} pieces", file=sys.stderr)
    finally:
        ray.shutdown()
    return prepare(source, out, options).rows


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, prepare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="nci, or a file that every machine sees")
    parser.add_argument("--out", type=Path, required=True, help="folder that every machine sees")
    parser.add_argument("--pieces", type=int, default=16, help="units of work (default: 16)")
    parser.add_argument("--address", help="of the cluster, such as auto or ray://head:10001")
    parser.add_argument("--limit", type=int, help="only the first so many rows")
    parser.add_argument("--shard-size", type=int, default=1000, help="rows per shard")
    parsed = parser.parse_args(arguments)
    if parsed.pieces < 1:
        parser.error("--pieces must be above 0")
    # A path that is relative here is nothing on another machine.
    source = parsed.source if parsed.source == "nci" else str(Path(parsed.source).resolve())
    options = PrepareOptions(limit=parsed.limit, shard_size=parsed.shard_size)
    try:
        rows = prepare_on_cluster(
            source, parsed.out.resolve(), options, parsed.pieces, parsed.address
        )
    except CollamoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{rows['in']} rows: {rows['ok']} ok, {rows['rejected']} rejected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
