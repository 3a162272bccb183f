"""How fast the operations are beside what else there is, on molecules and shapes of one's own."""

from collamo.benchmark.measurements import Comparison, append_rows, compare, rows_of_folder
from collamo.benchmark.timing import measure
from collamo.benchmark.workloads import Molecules, Shape, read_molecules, workloads_of

__all__ = [
    "Comparison",
    "Molecules",
    "Shape",
    "append_rows",
    "compare",
    "measure",
    "read_molecules",
    "rows_of_folder",
    "workloads_of",
]
