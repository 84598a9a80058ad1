"""Several processes at one artifact: the same bytes as one, through stops, deaths and changes of their number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from integration.workers import Crew, Worker, crew
from patience import PATIENCE_S, wait_until
from safetensors.numpy import load_file
from unit.tiny import files

from ipdiff import cli
from ipdiff.training import segment
from ipdiff.work import recipes

ROOT = Path(__file__).parents[2]
MINI = Path("studies/mini/params.yaml")
RUN = "--dataset digits_mini --model adm-ip --seed 0 --step 8"
TRAIN, SAMPLE = f"train {RUN}", f"sample {RUN} --sampler ancestral-5"
MEASURING = ("classifier", "reference", "neighbours", "halves --samples 47")
EVALUATE = f"evaluate {RUN} --sampler ancestral-5"
DIRECTORY = "runs/digits_mini/adm-ip/s0/8"
MADE = {TRAIN: "runs", SAMPLE: "samples"}


def write_params(project: Path, reduction: str = "exact", micro_batch: int | None = None) -> None:
    """A run of 8 updates of 4 micro-batches, whose loss history is full after 4 (T = 2), and a set of 12 calls."""
    params = yaml.safe_load((ROOT / MINI).read_text())
    params["work"] = {"save_every": 3, "micro_batch": micro_batch}
    mini = params["datasets"]["digits_mini"]
    mini.update(checkpoints=[8], final_step={"default": 8}, sampling={"num_samples": 47, "batch_size": 4})
    mini["families"]["adm"]["diffusion"]["T"] = 5
    mini["families"]["adm"]["training"].update(reduction=reduction, timesteps="loss-second-moment", grad_clip=1.0)
    mini["families"]["adm"]["training"]["micro_batch"] = 4 if reduction == "exact" else None
    params.update(tables={}, figures={})
    (project / MINI).parent.mkdir(parents=True, exist_ok=True)
    (project / MINI).write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which one process made everything."""
    project = tmp_path_factory.mktemp("alone")
    write_params(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(segment, "PAUSE", 0)  # as in the workers
        assert cli.main(["prepare", "--dataset", "digits_mini"]) == 0
        shutil.copytree(project / "data", project / "before" / "data")
        shutil.copytree("studies", "before/studies")
        for command in MADE:
            assert cli.main(command.split()) == 0
    return project


@pytest.fixture
def fresh(alone: Path, tmp_path: Path) -> Iterator[Crew]:
    project = tmp_path / "project"
    shutil.copytree(alone / "before", project)
    with crew(project, tmp_path) as made:
        yield made


def same(alone: Path, workers: Crew, command: str) -> bool:
    return files(workers.project / MADE[command]) == files(alone / MADE[command])


def ends(team: list[Worker]) -> list[int]:
    return [worker.end() for worker in team]


def wait_for(what: Callable[[], bool], *workers: Worker) -> None:
    wait_until(what, lambda: [worker.said() for worker in workers])


# Training


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_the_bytes_of_one(count: int, alone: Path, fresh: Crew) -> None:
    team = fresh.team(TRAIN, count)
    assert ends(team) == [0] * count, [worker.said() for worker in team]
    assert all(worker.did("update") == [str(step) for step in range(1, 9)] for worker in team)
    assert same(alone, fresh, TRAIN)
    states = {path.name for path in (alone / "work/states").rglob("0*")}
    assert states == {path.name for path in (fresh.project / "work/states").rglob("0*")}  # the loss history is in them


def test_the_number_of_processes_may_change_at_every_restart(alone: Path, fresh: Crew) -> None:
    (stopped,) = [fresh.start(TRAIN, at={"update 2": signal.SIGTERM})]
    assert stopped.end() == 75
    team = fresh.team(TRAIN, 2, at={1: {"update 5": signal.SIGTERM}})  # one is told; both stop after the same update
    assert ends(team) == [75, 75], [worker.said() for worker in team]
    assert {worker.did("update")[0] for worker in team} == {"2"}
    (last,) = {worker.did("update")[-1] for worker in team}
    assert fresh.do(TRAIN).did("update")[0] == str(int(last) + 1)
    assert same(alone, fresh, TRAIN)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_takes_the_others_with_it(dies: int, alone: Path, fresh: Crew) -> None:
    team = fresh.team(TRAIN, 2, at={dies: {"update 5": signal.SIGKILL}})
    codes = ends(team)
    assert codes[dies] == -signal.SIGKILL
    assert codes[1 - dies] == 75
    said = team[1 - dies].said()
    assert "another process of this training is gone" in said
    assert "Traceback" not in said
    team = fresh.team(TRAIN, 2)
    assert ends(team) == [0, 0]
    assert team[0].did("update")[0] == "4"  # one save interval is 3
    assert same(alone, fresh, TRAIN)


@pytest.mark.parametrize("count", [3, 8])
def test_a_number_that_does_not_fit_is_refused(count: int, fresh: Crew) -> None:
    team = fresh.team(TRAIN, count)
    codes = ends(team)
    assert codes[0] == 2
    assert set(codes) <= {2, 75}  # 75: one that found the others gone before it looked itself
    assert team[0].said() == (
        f"ipdiff: {count} processes cannot share the 4 micro-batches of an update exactly (training.reduction); "
        "use 1 or 2 or 4, or a smaller training.micro_batch, or training.reduction: fast\n"
    )
    assert not (fresh.project / "runs").exists()


def last_state(project: Path) -> dict[str, np.ndarray]:
    (path,) = (project / "work/states").rglob("000000008-*")
    return load_file(path)


def test_the_fast_reduction_trains_nearly_the_same_however_it_is_cut(fresh: Crew) -> None:
    """Of a batch of 16: all at once, 4 passes, shares of 8, and of 5, 5 and 6 in passes of at most 2."""
    found = {}
    for count, micro_batch in ((1, None), (1, 4), (2, None), (3, 2)):
        write_params(fresh.project, "fast", micro_batch=micro_batch)
        team = fresh.team(TRAIN, count)
        assert ends(team) == [0] * count, [worker.said() for worker in team]
        found[count, micro_batch] = last_state(fresh.project)
        shutil.rmtree(fresh.project / "work")
        shutil.rmtree(fresh.project / "runs")
    whole = found.pop((1, None))
    for state in found.values():
        np.testing.assert_allclose(state["loss"], whole["loss"], rtol=1e-4)
        assert np.array_equal(state["timesteps.counts"], whole["timesteps.counts"])
        np.testing.assert_allclose(state["timesteps.history"], whole["timesteps.history"], rtol=1e-3)
        assert any(state[name].tobytes() != whole[name].tobytes() for name in whole)
    assert whole["timesteps.counts"].min() == 10  # it was full, and decided timesteps


def test_another_cut_goes_on_from_what_the_last_has_saved(fresh: Crew) -> None:
    write_params(fresh.project, "fast")
    assert ends(fresh.team(TRAIN, 1)) == [0]
    whole = last_state(fresh.project)
    shutil.rmtree(fresh.project / "work")
    shutil.rmtree(fresh.project / "runs")
    first = fresh.team(TRAIN, 3, at={2: {"update 3": signal.SIGTERM}})
    assert ends(first) == [75] * 3
    (reached,) = {worker.did("update")[-1] for worker in first}
    write_params(fresh.project, "fast", micro_batch=3)
    second = fresh.team(TRAIN, 2)
    assert ends(second) == [0, 0], [worker.said() for worker in second]
    assert second[0].did("update")[0] == str(int(reached) + 1)
    np.testing.assert_allclose(last_state(fresh.project)["loss"], whole["loss"], rtol=1e-4)
    recipe = recipes.read(fresh.project / DIRECTORY / "recipe.json")
    assert not {"processes", "execution"} & recipe.keys()
    assert recipe["run"]["training"]["micro_batch"] is None
    receipt = json.loads((fresh.project / "receipts" / f"{DIRECTORY}.json").read_text())
    assert (receipt["processes"], receipt["micro_batch"]) == (2, 2)  # 8 images in equal passes of at most 3


# Sampling


@pytest.mark.parametrize("count", [3, 7])
def test_processes_draw_the_bytes_of_one(count: int, alone: Path, fresh: Crew) -> None:
    shutil.copytree(alone / "runs", fresh.project / "runs")
    team = fresh.team(SAMPLE, count)
    assert ends(team) == [0] * count, [worker.said() for worker in team]
    drawn = [unit for worker in team for unit in worker.did("draw")]
    assert len(drawn) == len(set(drawn)) == 12  # none twice
    assert same(alone, fresh, SAMPLE)


def test_what_a_dead_process_was_drawing_is_drawn_by_another(alone: Path, fresh: Crew) -> None:
    shutil.copytree(alone / "runs", fresh.project / "runs")
    rank = {"WORLD_SIZE": 3, "IPDIFF_RENDEZVOUS": "unused"}
    dying = fresh.start(SAMPLE, at={"draw 8-12": signal.SIGSTOP}, RANK=2, **rank)
    wait_for(lambda: dying.did("draw") == ["8-12"], dying)
    others = [fresh.start(SAMPLE, RANK=n, **rank) for n in (0, 1)]
    wait_for(lambda: sum(len(worker.did("draw")) for worker in others) == 11, *others)
    dying.process.kill()
    assert ends(others) == [0, 0]
    drawn = [unit for worker in others for unit in worker.did("draw")]
    assert drawn.count("8-12") == 1
    assert len(drawn) == len(set(drawn)) == 12
    assert same(alone, fresh, SAMPLE)


def test_shards_and_restarts_make_one_set(alone: Path, fresh: Crew) -> None:
    shutil.copytree(alone / "runs", fresh.project / "runs")
    stops = {rank: {f"draw {4 * rank + 12}-{4 * rank + 16}": signal.SIGTERM} for rank in range(3)}
    first = fresh.team(SAMPLE, 3, at=stops)
    assert set(ends(first)) <= {0, 75}
    second = fresh.team(SAMPLE, 2)
    assert ends(second) == [0, 0]
    finished = {unit for worker in first for unit in worker.did("draw")[:-1]}
    assert not finished & {unit for worker in second for unit in worker.did("draw")}
    assert same(alone, fresh, SAMPLE)


# IPDIFF_PROCESSES


def launch(workers: Crew, command: str, count: object = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "IPDIFF_PROCESSES": str(count), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "ipdiff", *command.split()]
    return subprocess.Popen(
        line, cwd=workers.project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_variable_starts_the_processes(alone: Path, fresh: Crew) -> None:
    job = launch(fresh, TRAIN)
    out, said = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said
    assert out == "runs/digits_mini/adm-ip/s0/8\n"
    assert said == ""
    assert same(alone, fresh, TRAIN)


def test_processes_measure_what_one_does(alone: Path, fresh: Crew) -> None:
    for name in ("runs", "samples"):
        shutil.copytree(alone / name, fresh.project / name)
    found = []
    for count in (2, 1):
        for command in (*(f"{verb} --dataset digits_mini" for verb in MEASURING), EVALUATE):
            job = launch(fresh, command, count)
            assert (job.wait(timeout=PATIENCE_S), job.communicate()[1]) == (0, "")
        made = [fresh.project / name for name in ("reference", "neighbours", "halves", "metrics")]
        found.append([files(folder) for folder in made])
        for folder in made:
            shutil.rmtree(folder)
    assert found[0] == found[1]
    assert [len(folder) for folder in found[0]] == [2, 3, 2, 2]


@pytest.mark.parametrize("count", ["0", "two", "-1", ""])
def test_a_variable_that_is_no_number_is_refused(count: str, fresh: Crew, monkeypatch, capsys) -> None:
    monkeypatch.chdir(fresh.project)
    monkeypatch.setenv("IPDIFF_PROCESSES", count)
    assert cli.main(TRAIN.split()) == 2
    assert capsys.readouterr().err == (
        f"ipdiff: IPDIFF_PROCESSES is {count!r}; expected a number of processes, 1 or more\n"
    )


def children(of: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_do_not_outlive_their_starter(fresh: Crew) -> None:
    job = launch(fresh, TRAIN)
    wait_for(lambda: len(children(job.pid)) == 2)
    started = children(job.pid)
    wait_for(lambda: bool(list((fresh.project / "work").rglob("0*.safetensors"))))  # a state: they are at work
    job.kill()
    job.communicate()
    wait_for(lambda: not any(map(running, started)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_starter_says_who_died(fresh: Crew) -> None:
    job = launch(fresh, TRAIN)
    wait_for(lambda: len(children(job.pid)) == 2)
    os.kill(children(job.pid)[1], signal.SIGKILL)
    said = job.communicate(timeout=PATIENCE_S)[1]
    assert job.returncode == 75
    assert "process 1 of 2 was ended by signal 9; run me again" in said
