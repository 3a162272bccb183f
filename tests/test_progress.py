"""The progress bar: on a terminal alone."""

from collamo.progress import progress_bar


def test_nothing_is_drawn_into_a_file_whatever_colours_are_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    with progress_bar("molecules", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""
