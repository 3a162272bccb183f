"""What the tests of several commands share: bad molecules, processes, the form of an error."""

import csv
import subprocess
import sys

CHAIN = "C" * 20_000
BAD_SMILES = {
    "C1CC": "unclosed ring",
    "": "empty",
    "   ": "empty",
    "CC CO": "blank",
    "CC\nCO": "line",
    CHAIN: "4,?000",
    "C" * 600: "512",
    "not a molecule": "",
}


def assert_fails(result, code, *parts):
    """One `error:` line on stderr with `parts` in it, nothing on stdout, no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 500
    for part in parts:
        assert part in lines[0]


def collamo_process(*arguments, **options):
    code = "from collamo.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def write_csv(path, rows, header=("smiles",)):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
