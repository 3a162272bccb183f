"""Print questions about held-out molecules as ``SMILES <tab> question <tab> true answer`` lines.

    python examples/held_out.py demo/data 3

Molecules of the test split with a conformer, one motif question each that has a positive count.
"""

import sys

from collamo.data.prepared import PreparedData


def main(folder: str, count: str) -> None:
    """Print `count` lines from the test split of the prepared data in `folder`."""
    data = PreparedData.open(folder)
    seen: set[int] = set()
    for example in data.tasks("test"):
        if len(seen) == int(count):
            return
        if example.task == "motif_count" and example.value and example.molecule not in seen:
            features = data.features(example.molecule)
            if features.conformer.coordinates is not None:
                seen.add(example.molecule)
                print(features.smiles, example.question, example.answer, sep="\t")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/held_out.py DATA COUNT")
    main(*sys.argv[1:])
