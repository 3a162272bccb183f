"""The options of a preparation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collamo.chem.conformer import FORCE_FIELD_STEPS
from collamo.chem.conformer_workers import MEMORY_LIMIT
from collamo.data.tasks import SHAPES_PER_MOLECULE
from collamo.errors import UsageError, suggest

EMBEDDERS = ("rdkit", "nvmolkit")
SPLIT_RULES = ("scaffold", "random", "published")


@dataclass(frozen=True)
class PrepareOptions:
    """What shapes the result; stored in the manifest and compared when a run is resumed.

    Raises
    ------
    UsageError
        For a number out of its range.
    """

    conformers: bool = True
    """False: no embedding; 3D coordinates of the source are kept all the same."""
    embedder: str = "rdkit"
    """What embeds: ``"rdkit"``, or ``"nvmolkit"``, which does on a GPU what it can, RDKit the rest.
    A GPU gives no bytes that another one repeats."""
    force_field_steps: int = FORCE_FIELD_STEPS
    """Of MMFF or UFF per conformer. 100 save a fifth of the time and leave a mean error of a
    distance of 0.05 Å instead of 0.014 Å."""
    large_force_field_steps: int | None = None
    """The same, of molecules of 70 atoms and more, hydrogens counted; None: as many. With 50 such a
    molecule takes a sixth less time and ends 27 kcal/mol above the long run instead of 9, with 0 a
    quarter less and 200 above it; an RMSD of 1.7 to 1.8 Å from it each time (docs/performance.md).
    """
    seed: int = 0
    """Of conformers, splits and questions."""
    time_limit: float = 30.0
    """Seconds of processor time one molecule may take; its worker is killed then. Twenty times as
    long on the clock stands behind it."""
    memory_limit: float = MEMORY_LIMIT
    """GiB a worker may allocate; a molecule that needs more loses its conformer or, at worst, its
    row. It has no effect outside Linux."""
    limit: int | None = None
    """Only the first so many records."""
    shard_size: int = 1000
    """Records per shard."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, validation and test."""
    split_by: str = "scaffold"
    """``"scaffold"``, ``"random"``, ``"published"``: the sizes that papers use for this source,
    drawn at random; or ``"column:NAME"``: as that column of the source says."""
    smiles_column: str | None = None
    """Name of the column of molecules, where it is not recognised by itself."""
    selfies_column: str | None = None
    """Likewise, where its texts are SELFIES, whatever they look like."""
    caption_column: str | None = None
    """Likewise, of the column of captions."""
    iupac_column: str | None = None
    """Likewise, of the column of IUPAC names."""
    measured_columns: tuple[str, ...] = ()
    """Numeric columns to ask for; ``"logS:log mol/L"`` gives a unit."""
    guess_columns: bool = True
    """Ask for columns that carry the names of QM9's or PubChem's and lie in their range."""
    shape_questions: int = SHAPES_PER_MOLECULE
    """Of a molecule with a conformer, about numbers of its shape, drawn at random."""

    def __post_init__(self):
        """Check, and let equal options be written alike, for they are compared as JSON."""
        check_positive(
            {
                "time_limit": self.time_limit,
                "memory_limit": self.memory_limit,
                "shard_size": self.shard_size,
                "limit": self.limit,
            }
        )
        for name in ("force_field_steps", "large_force_field_steps", "shape_questions"):
            number = getattr(self, name)
            if number is not None and number < 0:
                raise UsageError(f"{name} is {number}; it must not be below 0")
        if self.embedder not in EMBEDDERS:
            raise UsageError(
                f"embedder is {self.embedder!r}; it must be {' or '.join(EMBEDDERS)}"
                f"{suggest(self.embedder, EMBEDDERS)}"
            )
        if len(self.split) != 3 or min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-9:
            raise UsageError(f"split is {self.split}; give three shares that add up to 1")
        if self.split_by not in SPLIT_RULES and not self.split_column:
            raise UsageError(
                f"split_by is {self.split_by!r}; it must be {', '.join(SPLIT_RULES)} or column:NAME"
                f"{suggest(self.split_by, SPLIT_RULES)}"
            )
        for name, value in (
            ("time_limit", float(self.time_limit)),  # 30 s as 30.0
            ("memory_limit", float(self.memory_limit)),
            ("split", tuple(float(share) for share in self.split)),
            ("measured_columns", tuple(self.measured_columns)),
        ):
            object.__setattr__(self, name, value)

    @property
    def split_column(self) -> str | None:
        """The column of the source that says the split; None where none does."""
        rule, _, column = self.split_by.partition(":")
        return (column or None) if rule == "column" else None


def check_positive(numbers: Mapping[str, float | None]) -> None:
    """Raise UsageError for the first number that is not above 0; None passes."""
    for name, value in numbers.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} is {value}; it must be above 0")
