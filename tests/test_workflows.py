"""The public workflows: each step is a target or a script of this repository, as in `.ci/run`."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
#: Of a release alone, before which there is no tag to look at; and what trains for minutes.
NOT_IN_CI = {'bash .ci/tag "$GITHUB_REF_NAME"', "make notebooks"}


def steps(path):
    """Return every command of a workflow, with the values of its matrix filled in."""
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [""])
        for step in job["steps"]:
            for target in targets if "run" in step else []:
                yield step["run"].replace("${{ matrix.target }}", target)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_runs_in_public_runs_here(path):
    commands = set(steps(path)) - NOT_IN_CI
    assert commands
    assert commands <= set(CI.splitlines())


def test_every_extra_environment_of_ci_is_public_too():
    public = {command for path in WORKFLOWS for command in steps(path)}
    assert {line for line in CI.splitlines() if line.startswith("make ")} <= public


@pytest.mark.parametrize("tag", ["v9.9.9", VERSION])
def test_a_tag_of_another_version_is_refused(tag):
    done = subprocess.run(["bash", ".ci/tag", tag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: tag {tag}, but pyproject.toml has version {VERSION}\n"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
