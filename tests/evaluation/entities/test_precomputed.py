"""Entities that were found by other means, from a file."""

import pytest

from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import Caption
from collamo.evaluation.entities.precomputed import PrecomputedEntities

CAPTIONS = [Caption(row, side, "") for row in (1, 2, 4) for side in ("prediction", "reference")]
EXPECTED = [{"ketone", "ester"}, set(), None, {"ketone"}, None, None]


def test_entities_from_a_file(tmp_path):
    lines = tmp_path / "entities.jsonl"
    lines.write_text(
        '{"row": 1, "prediction": ["Ketone", "ester "], "reference": []}\n'
        '{"row": 2, "prediction": null, "reference": ["ketone"]}\n'
    )
    table = tmp_path / "entities.tsv"
    table.write_text("row\treference\tprediction\n1\t\tketone|Ester\n")
    with PrecomputedEntities(lines) as extractor:
        assert extractor.extract(CAPTIONS) == EXPECTED
        assert extractor.grounded(frozenset(("ketone",)), "CC(C)=O") is None
    with PrecomputedEntities(table) as extractor:  # batch by batch
        found = [extractor.extract(CAPTIONS[i : i + 2]) for i in (0, 2)]
    assert found == [EXPECTED[:2], [None, None]]


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (["[1]"], "line 1 is no row"),
        (['{"row": 0, "prediction": []}'], "line 1 is no row"),
        (['{"row": 1, "prediction": "ketone"}'], "line 1 is no row"),
        (['{"row": 1, "prediction": [1]}'], "line 1 is no row"),
        (['{"row": 1}', "{"], "line 2 is no row"),
        (['{"row": 2}', '{"row": 2}'], "row 2 follows row 2"),
        (['{"row": 4}', '{"row": 9}'], "row 9 is not in the predictions file"),
    ],
)
def test_files_of_entities_that_cannot_be_right(tmp_path, lines, part):
    path = tmp_path / "entities.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=part), PrecomputedEntities(path) as extractor:
        extractor.extract(CAPTIONS)
