"""The score that decides about a task."""

from collamo.evaluation.examine.scores import primary_metric


def test_primary_metric_of_each_kind_of_task():
    assert primary_metric("caption", False) == "bleu4"
    assert primary_metric("motif_count", True) == "exact"
    assert primary_metric("property_3d", True) == "scaled_error"
    assert primary_metric("iupac_name", False) == "exact"
