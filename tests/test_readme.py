import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_example_runs_and_is_short():
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    assert len(example.strip().splitlines()) - 1 <= 8  # without the empty line
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["relations"].hops[0, 0].tolist() == [0, 1, 2, 2]
    assert names["y"].shape == (1, 4, 64)


def test_what_the_readme_points_to_is_there():
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
