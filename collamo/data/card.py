"""``README.md`` of a prepared folder: what it holds, and how the library `datasets` opens it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from collamo.files import write_text

CARD = "README.md"
# The names of `datasets` and its hub for parts of a folder, here and wherever it is copied to.
_CONFIGS = """\
---
configs:
- config_name: questions
  default: true
  data_files:
  - {split: train, path: tasks-train.parquet}
  - {split: validation, path: tasks-validation.parquet}
  - {split: test, path: tasks-test.parquet}
- config_name: molecules
  data_files: molecules-*.parquet
- config_name: splits
  data_files: splits.parquet
---
"""
_TEXT = """\
# {source}, prepared for CoLLaMo

{ok} molecules of the {total} records of `{source}` (SHA-256 `{sha256}`); {rejected} were rejected,
with the reasons in `rejected.jsonl`. `manifest.json` has options, counts and versions.

```python
from datasets import load_dataset

questions = load_dataset("FOLDER", "questions", streaming=True)
molecules = load_dataset("FOLDER", "molecules", split="train", streaming=True)  # of all splits
splits = load_dataset("FOLDER", "splits", split="train")  # row -> train, validation or test; parent

# In an object store datasets opens files, not folders:
load_dataset("parquet", data_files="s3://…/molecules-*.parquet", split="train", streaming=True)
```

`molecule` of a question is `row` of a molecule. `collamo train RECIPE --data FOLDER` trains on it.
"""


def write_card(folder: Path, source: str, sha256: str, rows: Mapping[str, int]) -> Path:
    """Write the card of the data in `folder`, whole or not at all; `rows` as in the manifest."""
    counts = {"ok": rows["ok"], "total": rows["in"], "rejected": rows["rejected"]}
    # A line break in a file's name would end the heading.
    name = " ".join(source.split())
    write_text(folder / CARD, _CONFIGS + _TEXT.format(source=name, sha256=sha256, **counts))
    return folder / CARD
