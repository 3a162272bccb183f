import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_first_example_runs(capsys):
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    exec(compile(example, "README.md", "exec"), {})
    hops, y, attention = capsys.readouterr().out.strip().split(" torch.Size(")
    assert hops == "[0, 1, 2, 2]"
    assert (y, attention) == ("[1, 4, 64])", "[1, 8, 4, 4])")
