"""The reserved hop counts, one byte each so that a table index is cheap to read, and the limit."""

LONGEST = 253  # longer paths saturate here; the longest path of a drug-like molecule is ~40 bonds
RESERVED = 254  # a virtual node of the caller's own; the library never writes it
UNREACHABLE = 255  # different fragments, and padding

MAX_ATOMS = 65_535  # of one molecule; the search keeps atom numbers in 16 bits
