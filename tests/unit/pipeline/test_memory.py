"""The memory that a cluster's job asks for follows from the network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ipdiff.nets import costs
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import workflow
from ipdiff.pipeline.engines.workflow import LIBRARIES_MB, memory_mb
from ipdiff.spec import RunSpec

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def specs() -> dict[str, RunSpec]:
    """A run of each data set of the paper study."""
    params = grid.load(ROOT).studies.load("paper")
    return {name: params.run_spec(name, "adm", 0) for name in params.datasets}


def test_a_training_asks_for_its_state_and_more(specs: dict[str, RunSpec]) -> None:
    for name, spec in specs.items():
        state_mb = 16 * (costs.of(spec) or pytest.fail(name)).parameters / 1e6
        assert state_mb + LIBRARIES_MB < memory_mb(spec, trains=True) < 2 * state_mb + LIBRARIES_MB, name
        assert LIBRARIES_MB < memory_mb(spec, trains=False) < memory_mb(spec, trains=True)


def test_on_a_cpu_activations_count(specs: dict[str, RunSpec]) -> None:
    on_gpu = specs["cifar10"]
    on_cpu = replace(on_gpu, compute=replace(on_gpu.compute, device="cpu"))
    smaller = replace(on_cpu, training=replace(on_cpu.training, micro_batch=1))
    found = [memory_mb(spec, trains=True) for spec in (on_gpu, smaller, on_cpu)]
    assert found == sorted(set(found))


def test_a_family_without_a_formula_gets_a_fixed_size(specs: dict[str, RunSpec], monkeypatch) -> None:
    monkeypatch.setattr(costs, "WALKS", {})
    assert memory_mb(specs["cifar10"], trains=True) == LIBRARIES_MB + workflow.UNKNOWN_MB


def test_each_process_and_attempt_gets_more_without_torch(monkeypatch) -> None:
    code = f"""
import os, sys
os.chdir({str(ROOT)!r})
from types import SimpleNamespace
from ipdiff.pipeline.engines.workflow import Workflow
plain = SimpleNamespace(
    modifier=SimpleNamespace(path_modifier=SimpleNamespace(prefix=None, modifies_prefixes=False)),
    deployment_settings=None,
)
asked = Workflow(plain, {{}}, lambda: "params.yaml").memory("train")
of = SimpleNamespace(dataset="ffhq128", model="adm-ip", seed="0")
print(*(asked(of, attempt) for attempt in (1, 2, 3, 20)), "torch" in sys.modules)
"""
    sizes = []
    for processes in ("1", "2"):
        monkeypatch.setenv("IPDIFF_PROCESSES", processes)
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert said[-1] == "False"
        one, *more = map(int, said[:-1])
        assert more == [2 * one, 3 * one, 3 * one]
        sizes.append(one)
    assert sizes[1] == 2 * sizes[0]
