"""Who may import whom, kernels never the model and inside the model one way only; no pickle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    *("extras", "errors", "files", "schema", "progress", "storage"),
    *("chem", "data", "model", "training", "inference", "evaluation", "cli"),
)
# The command line's companions: `doctor` looks at the installation, `ablation` trains and asks,
# `benchmark` times.
SAME_LAYER = {"doctor": "cli", "ablation": "cli", "benchmark": "cli", "__main__": "cli"}


def imports(path, root=ROOT):
    """Yield (line, dotted name) of every import of a file, those inside functions included."""
    parts = path.relative_to(root).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts[:-1]
    package = package[:-1] if package and package[-1] == "__init__" else package
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, node.args[0].value


def layer(name):
    """Return the layer of a dotted name inside collamo, or None outside (or `collamo` itself)."""
    head, *rest = name.split(".")
    if head != "collamo" or not rest:
        return None
    found = SAME_LAYER.get(rest[0], rest[0])
    return found if found in LAYERS else None


def complaints(root):
    """Return one line for every import that goes the wrong way."""
    wrong = []
    for path in sorted(root.glob("collamo*/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        here = layer(".".join(parts))
        for line, name in imports(path, root):
            if parts[0] == "collamo_kernels" and name.split(".")[0] == "collamo":
                wrong.append(f"{path.relative_to(root)}:{line} imports {name}")
            there = layer(name)
            if here and there and LAYERS.index(there) > LAYERS.index(here):
                wrong.append(f"{path.relative_to(root)}:{line} ({here}) imports {name} ({there})")
    return wrong


def modules(root):
    """Return dotted name → path of every file of both packages and the examples."""
    folders = [(root, "collamo*/**/*.py"), (root / "examples", "*.py")]
    paths = {path: path.relative_to(top) for top, pattern in folders for path in top.glob(pattern)}
    dotted = {path: ".".join(short.with_suffix("").parts) for path, short in paths.items()}
    return {name.removesuffix(".__init__"): path for path, name in dotted.items()}


def circle(root):
    """Return the modules that import each other round in a circle, none where there is none.

    ``from a import b`` is an import of the file a/b.py where that exists, else of a.
    """
    paths = modules(root)
    graph = {module: set() for module in paths}
    for module, path in paths.items():
        for _, name in imports(path, root):
            target = name if name in paths else name.rpartition(".")[0]
            # collamo_kernels._C is compiled: it imports nothing.
            if target in paths and target != module and not name.endswith("._C"):
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    ("files", "length"),
    [
        ({"a.py": "import collamo.b", "b.py": "def f():\n    from collamo.a import x"}, 2),
        (
            {
                "a.py": "from collamo import b",
                "b.py": "from . import c",
                "c.py": "from .a import x",
            },
            3,
        ),
        ({"p/__init__.py": "from collamo.p.a import x", "p/a.py": "from collamo.p import x"}, 2),
        ({"p/__init__.py": "from .a import x", "p/a.py": "from collamo.p.b import x"}, 0),
        ({"a.py": "from collamo import b", "b.py": "import a, os, collamo.c"}, 0),
    ],
)
def test_the_rule_of_circles_itself(files, length, tmp_path):
    for name, text in files.items():
        path = tmp_path / "collamo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(set(circle(tmp_path))) == length


def test_imports_run_one_way():
    assert complaints(ROOT) == []


def test_every_module_of_collamo_has_a_layer():
    modules = {path.stem for path in (ROOT / "collamo").iterdir() if path.suffix == ".py"}
    folders = {path.parent.name for path in (ROOT / "collamo").glob("*/__init__.py")}
    assert (modules | folders) - {"__init__"} <= {*LAYERS, *SAME_LAYER}


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("collamo_kernels/radial.py", "import collamo", True),
        ("collamo_kernels/radial.py", "def f():\n    from collamo.model import x", True),
        ("collamo_kernels/radial.py", "import collamo_kernels.relations", False),
        ("collamo/chem/molecule.py", "def f():\n    from collamo import data", True),
        ("collamo/chem/molecule.py", "from ..data import batch", True),
        ("collamo/chem/molecule.py", "from .. import data", True),
        ("collamo/chem/__init__.py", "from ..model.modeling import x", True),
        (
            "collamo/chem/molecule.py",
            "import importlib\nimportlib.import_module('collamo.cli')",
            True,
        ),
        ("collamo/chem/molecule.py", "from . import features\nimport collamo_kernels", False),
        ("collamo/chem/__init__.py", "from .molecule import Molecule", False),
        ("collamo/model/modeling.py", "from collamo.errors import UsageError", False),
        ("collamo/model/modeling.py", "from collamo.doctor import check", True),
    ],
)
def test_the_rule_itself(file, text, found, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert bool(complaints(tmp_path)) == found


def unpickles(path):
    """Yield a line for everything in a file that could run what stands in a file of a stranger."""
    for line, name in imports(path):
        if name.split(".")[0] in ("pickle", "dill", "joblib", "cloudpickle", "shelve"):
            yield f"{path.relative_to(ROOT)}:{line} imports {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        opens = call.startswith(("torch.load(", "np.load(", "numpy.load(", "pd.read_pickle("))
        if opens and "weights_only=True" not in call and "allow_pickle=False" not in call:
            yield f"{path.relative_to(ROOT)}:{node.lineno} calls {call}"


def test_nothing_unpickles():
    """A checkpoint's training_args.bin, or a cache in pickle, runs code when it is opened."""
    folders = ("collamo", "collamo_kernels", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert [line for path in files for line in unpickles(path)] == []
