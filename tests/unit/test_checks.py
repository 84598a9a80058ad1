"""What runs before a commit and on a server is what `make` runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVER_ALL_FILES = "git ls-files -z | xargs -0 "


def load(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def targets() -> dict[str, list[str]]:
    """Targets of the Makefile and their commands."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "Makefile").read_text().splitlines():
        if match := re.match(r"([a-z-]+):(?!=)", line):
            found[match[1]] = commands = []
        elif line.startswith("\t"):
            commands.append(line.strip())
    return found


def test_hooks_run_the_commands_of_make_lint() -> None:
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert len({hook["id"] for hook in hooks}) == len(hooks)
    commands = []
    for hook in hooks:
        program, _, rest = hook["entry"].partition(" ")
        assert program.startswith(".venv/bin/"), "a hook runs the program that constraints.txt fixes"
        command = " ".join(filter(None, [program.removeprefix(".venv/bin/"), rest]))
        commands.append(command if hook.get("pass_filenames") is False else OVER_ALL_FILES + command)
    assert commands == targets()["lint"]


def test_what_fix_mends_lint_checks() -> None:
    checked = {re.sub(r" (--check|check)\b", "", command) for command in targets()["lint"]}
    mended = {re.sub(r" (--fix|--exit-zero|check)\b", "", command) for command in targets()["fix"]}
    assert mended <= checked
    written = {command.replace("--write", "--check") for command in targets()["graph"]}
    assert written <= set(targets()["lint"])
    assert re.search(r"^fix: graph$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands_of(job: dict[str, Any]) -> list[list[str]]:
    return [shlex.split(step["run"]) for step in job["steps"] if "run" in step]


def test_the_server_runs_targets_that_exist_on_pythons_that_are_supported() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # yaml 1.1 reads the key `on` as true
    jobs = workflow["jobs"]
    made = [word for job in jobs.values() for words in commands_of(job) if words[0] == "make" for word in words[1:]]
    goals = [word for word in made if "=" not in word]
    assert set(goals) <= set(targets())
    assert commands_of(jobs["test"]) == [["make", "lint", "test", "PYTHON=python"]]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    pythons = [step.get("with", {}).get("python-version", "") for job in jobs.values() for step in job["steps"]]
    pythons = [python for python in pythons if python and "{" not in python] + jobs["test"]["strategy"]["matrix"][
        "python"
    ]
    assert min(tuple(map(int, python.split("."))) for python in pythons) == tuple(map(int, oldest.split(".")))
    assert jobs["macos"]["runs-on"].startswith("macos")
    assert commands_of(jobs["macos"])[-1][:5] == [".venv/bin/python", "-m", "pytest", "-q", "tests/unit"]


@pytest.mark.parametrize("name", ["ci.yml", "declared", "doctor --json", "docs/extending.md", "make fix", "make graph"])
def test_contributing_says_so(name: str) -> None:
    assert name in (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_names_targets_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`make ([a-z-]+)", page)) | set(re.findall(r"^make ([a-z-]+)", page, re.MULTILINE))
    assert {"install", "lint", "test", "test-unit", "test-all", "fix", "graph"} <= named <= set(targets())


def test_a_report_of_a_fault_asks_what_the_machine_is() -> None:
    form = load(".github/ISSUE_TEMPLATE/bug.yml")
    assert {"name", "description", "body"} <= set(form)
    labels = {field["id"]: field["attributes"]["label"] for field in form["body"]}
    assert labels["doctor"] == "ipdiff doctor --json"


def test_the_workflow_catalog_reads_the_report_key_in_either_place() -> None:
    usage = load(".snakemake-workflow-catalog.yml")["usage"]
    assert usage["report"] is usage["software-stack-deployment"]["report"] is True
    assert (ROOT / "workflow/Snakefile").is_file()
    assert (ROOT / "config/README.md").is_file()
