"""The program: what ``collamo`` and ``python -m collamo`` start."""

import os
import sys

from collamo.extras import missing_module


def main() -> None:
    """Run the command line; where its packages are missing, say so in one line and exit with 4."""
    # Charts go into files. A notebook names its own backend to what it starts, and a matplotlib
    # that does not know it cannot be imported: a training ended at its learning curve.
    os.environ.pop("MPLBACKEND", None)
    try:
        from collamo.cli import main as command_line
    except ModuleNotFoundError as error:
        print(f"error: {missing_module(error.name or '')}", file=sys.stderr)
        sys.exit(4)
    command_line()


if __name__ == "__main__":
    main()
