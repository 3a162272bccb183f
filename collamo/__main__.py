"""``python -m collamo``: the command line, where its script is not on the path."""

from collamo.cli import main

main()
