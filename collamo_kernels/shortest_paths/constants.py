"""The reserved hop counts. A count is one byte, so that a table index costs one byte to read."""

LONGEST = 253  # longer paths saturate here; the longest path of a drug-like molecule is ~40 bonds
RESERVED = 254  # a virtual node of the caller's own; the library never writes it
UNREACHABLE = 255  # different fragments, and padding
