"""Kills, signals, damage, full disks and rivals: the bytes of an undisturbed run come out, without a hand's help."""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from integration import workers
from integration.workers import Crew, Worker, crew, publish_two_files, save_a_state, save_a_unit
from patience import wait_until
from unit.tiny import files, flip_bit

from ipdiff import cli
from ipdiff.errors import UserError
from ipdiff.pipeline.store import artifact
from ipdiff.training import segment
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE
from ipdiff.work.train_states import States

ROOT = Path(__file__).parents[2]
MINI = Path("studies/mini/params.yaml")
RUN = "--dataset digits_mini --model adm-ip --seed 0 --step 24"
TRAIN, SAMPLE, EVALUATE = (
    f"train {RUN}",
    f"sample {RUN} --sampler ancestral-20",
    f"evaluate {RUN} --sampler ancestral-20",
)
MADE = {TRAIN: "runs", SAMPLE: "samples", EVALUATE: "metrics"}
SAVE_EVERY = 4


def write_params(project: Path) -> None:
    """The study `mini` with a run of 24 updates, a save every 4, and sets of 5 network calls of 20 steps."""
    params = yaml.safe_load((ROOT / MINI).read_text())
    params["work"] = {"save_every": SAVE_EVERY}
    params["datasets"]["digits_mini"].update(
        checkpoints=[4, 24],
        final_step={"default": 24},
        sampling={"num_samples": 38, "batch_size": 8},
    )
    (project / MINI).parent.mkdir(parents=True, exist_ok=True)
    (project / MINI).write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which train, sample and evaluate were made without a fault."""
    project = tmp_path_factory.mktemp("undisturbed")
    write_params(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(segment, "PAUSE", 0)  # as in the workers
        for verb in ("prepare", "classifier", "reference", "neighbours", "halves --samples 38"):
            assert cli.main([*verb.split(), "--dataset", "digits_mini"]) == 0
        assert cli.main(f"train {RUN.replace('24', '4')}".split()) == 0
        shutil.copytree(project, project / "before")  # what a test starts from
        for command in MADE:
            assert cli.main(command.split()) == 0
    return project


@pytest.fixture
def fresh(undisturbed: Path, tmp_path: Path) -> Iterator[Crew]:
    """A project in which nothing of the run's end has been made, and workers for it."""
    project = tmp_path / "project"
    shutil.copytree(undisturbed / "before", project)
    with crew(project, tmp_path) as made:
        yield made


def same(undisturbed: Path, workers: Crew, command: str) -> bool:
    kind = MADE[command]
    return files(workers.project / kind) == files(undisturbed / kind)


def prepare_for(command: str, undisturbed: Path, workers: Crew) -> None:
    """Give the project what the commands before `command` make."""
    for earlier in MADE:
        if earlier == command:
            return
        shutil.copytree(undisturbed / MADE[earlier], workers.project / MADE[earlier], dirs_exist_ok=True)


def work(workers: Crew, kind: str) -> list[Path]:
    """Files of finished work that are kept for a restart."""
    return sorted((workers.project / "work" / kind).rglob("0*.safetensors"))


# kill -9


def kill_at_random(command: str, count: int, undisturbed: Path, workers: Crew) -> list[Worker]:
    """Kill a command at `count` instants spread over the time that it takes, then let it finish."""
    prepare_for(command, undisturbed, workers)
    chance, limit, killed = random.Random(command), 1.0, 0
    runs: list[Worker] = []
    while killed < count:
        runs.append(workers.start(command))
        runs[-1].process.join(limit * chance.random())
        if runs[-1].process.is_alive():
            runs[-1].process.kill()
            killed += 1
        code = runs[-1].end()
        assert code in (0, -signal.SIGKILL), runs[-1].said()
        if code == 0:  # it came through: once more from the start, with less time
            limit *= 0.8
            assert same(undisturbed, workers, command)
            shutil.rmtree(workers.project / MADE[command])
            if command == TRAIN:
                shutil.copytree(undisturbed / "before" / "runs", workers.project / "runs")
            shutil.rmtree(workers.project / "work")
    runs.append(workers.do(command))
    assert same(undisturbed, workers, command)
    assert not list((workers.project / "work/staging").iterdir())
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("command", MADE, ids=lambda command: command.split()[0])
def test_kills_at_random_instants(command: str, undisturbed: Path, fresh: Crew) -> None:
    runs = kill_at_random(command, 7, undisturbed, fresh)
    reached = 4
    for run in runs:
        updates = [int(step) for step in run.did("update")]
        if updates and updates[0] != 1 and updates[0] != 5:
            assert updates[0] > reached - SAVE_EVERY, "more than a save interval was lost"
        reached = updates[-1] if updates else reached


@pytest.mark.parametrize("step", [5, 9, 24])
def test_a_kill_loses_one_save_interval_at_most(step: int, undisturbed: Path, fresh: Crew) -> None:
    assert fresh.start(TRAIN, at={f"update {step}": signal.SIGKILL}).end() == -signal.SIGKILL
    again = [int(update) for update in fresh.do(TRAIN).did("update")]
    assert step - SAVE_EVERY < again[0] <= step
    assert again == list(range(again[0], 25))
    assert same(undisturbed, fresh, TRAIN)


def test_a_kill_while_sampling_loses_the_open_network_call(undisturbed: Path, fresh: Crew) -> None:
    prepare_for(SAMPLE, undisturbed, fresh)
    killed = fresh.start(SAMPLE, at={"draw 16-24": signal.SIGKILL})
    assert killed.end() == -signal.SIGKILL
    assert killed.did("draw") == ["0-8", "8-16", "16-24"]
    assert fresh.do(SAMPLE).did("draw") == ["16-24", "24-32", "32-38"]
    assert same(undisturbed, fresh, SAMPLE)
    assert not work(fresh, "samples")  # nothing is kept twice


# A scheduler's warning


@pytest.mark.parametrize("warning", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warning_saves_the_state(warning: int, undisturbed: Path, fresh: Crew) -> None:
    warned = fresh.start(TRAIN, at={"update 10": warning})
    assert warned.end() == 75, warned.said()
    assert "stopped by a signal at step 9 of 24; saved, run me again" in warned.said()
    assert fresh.do(TRAIN).did("update")[0] == "10"
    assert same(undisturbed, fresh, TRAIN)


@pytest.mark.parametrize("warning", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warning_stops_inside_a_network_call_of_sampling(warning: int, undisturbed: Path, fresh: Crew) -> None:
    prepare_for(SAMPLE, undisturbed, fresh)
    warned = fresh.start(SAMPLE, at={"draw 16-24": warning})
    assert warned.end() == 75, warned.said()
    assert "what was finished is saved, run me again" in warned.said()
    assert [path.name[:19] for path in work(fresh, "samples")] == ["000000000-000000008", "000000008-000000016"]
    assert fresh.do(SAMPLE).did("draw")[0] == "16-24"
    assert same(undisturbed, fresh, SAMPLE)


def test_a_warning_ends_any_other_stage_with_nothing_published(undisturbed: Path, fresh: Crew) -> None:
    prepare_for(EVALUATE, undisturbed, fresh)
    warned = fresh.start(functools.partial(workers.warned_while_reading, EVALUATE))
    assert warned.end() == 75, warned.said()
    assert warned.said() == "ipdiff: stopped by a signal; nothing was published, run me again\n"
    assert not (fresh.project / "metrics").exists()
    assert not list((fresh.project / "work/staging").iterdir())


# Damage


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_last_save_falls_back_to_the_one_before(damage: str, undisturbed: Path, fresh: Crew) -> None:
    fresh.start(TRAIN, at={"update 15": signal.SIGKILL}).end()
    *_, before, newest = work(fresh, "states")
    assert (before.name[:9], newest.name[:9]) == ("000000008", "000000012")
    if damage == "flipped":
        flip_bit(newest, 1000)
    else:
        newest.write_bytes(newest.read_bytes()[: 1000 if damage == "torn" else 0])
    assert fresh.do(TRAIN).did("update")[0] == "9"
    assert same(undisturbed, fresh, TRAIN)


def test_a_damaged_network_call_is_drawn_again(undisturbed: Path, fresh: Crew) -> None:
    prepare_for(SAMPLE, undisturbed, fresh)
    fresh.start(SAMPLE, at={"draw 24-32": signal.SIGKILL}).end()
    flip_bit(work(fresh, "samples")[1])
    assert fresh.do(SAMPLE).did("draw") == ["8-16", "24-32", "32-38"]
    assert same(undisturbed, fresh, SAMPLE)


def test_without_any_state_the_run_is_trained_again_through_the_recorded_digest(undisturbed: Path, fresh: Crew) -> None:
    shutil.rmtree(fresh.project / "work")
    assert fresh.do(TRAIN).did("update") == [str(step) for step in range(1, 25)]
    assert same(undisturbed, fresh, TRAIN)


# Every operation of a save and of a publication


def whole(path: Path) -> bool:
    """Whether an artifact is there and verifies; IntegrityError if it is there and does not."""
    try:
        recipe = recipes.read(path / RECIPE)
    except UserError:
        return False
    artifact.verify_inputs(tuple(str(path / name) for name in (*recipe["outputs"], RECIPE)))
    return True


@pytest.mark.parametrize(("before", "error"), [("nothing", False), ("an older one", False), ("an older one", True)])
def test_a_fault_at_each_operation_of_a_publication(before: str, error: bool, tmp_path: Path, monkeypatch) -> None:
    with crew(tmp_path / "p", tmp_path) as workers:
        (tmp_path / "p").mkdir()
        monkeypatch.chdir(tmp_path / "p")
        workers.do(publish_two_files)
        good = files(Path("runs"))
        for number in itertools.count(1):
            if before == "nothing":
                shutil.rmtree("runs", ignore_errors=True)
            worker = workers.start(publish_two_files, fault=number, error=error)
            worker.end()
            if len(worker.did("operation")) < number:
                break
            assert not whole(Path("runs/x/8")) or files(Path("runs")) == good
            workers.do(publish_two_files)
            assert files(Path("runs")) == good, worker.did("operation")[-1]
            assert not list(artifact.STAGING.iterdir())
        done = [line.split()[0] for line in worker.did("operation")]
        assert done.count("fsync") >= 7
        assert done.count("os.rename") == 4  # two files, the recipe, the receipt
        assert number > 15


@pytest.mark.parametrize("error", [False, True], ids=["killed", "refused by the system"])
@pytest.mark.parametrize(("save", "kind"), [(save_a_state, "states"), (save_a_unit, "samples")])
def test_a_fault_at_each_operation_of_a_save(save, kind: str, error: bool, tmp_path: Path, monkeypatch) -> None:
    def saved() -> dict[str, bytes]:
        return {name: data for name, data in files(Path("work", kind)).items() if data and "lock" not in name}

    with crew(tmp_path / "p", tmp_path) as workers:
        (tmp_path / "p").mkdir()
        monkeypatch.chdir(tmp_path / "p")
        workers.do(save)
        good = saved()
        for number in itertools.count(1):
            shutil.rmtree(Path("work"))
            worker = workers.start(save, fault=number, error=error)
            worker.end()
            if len(worker.did("operation")) < number:
                break
            newest = States(Path("work/states/x")).newest(9)
            assert newest is None or newest[1].read_bytes() in good.values()
            workers.do(save)
            assert saved() == good
        done = [line.split()[0] for line in worker.did("operation")]
        assert set(done) >= {"open", "fsync", "os.rename", "os.mkdir"}


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a file system of 10 MiB needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("command", MADE, ids=lambda command: command.split()[0])
@pytest.mark.parametrize("room", [0, 30_000, 200_000])
def test_a_full_disk(command: str, room: int, undisturbed: Path, small_disk: Path, tmp_path: Path) -> None:
    project = small_disk / "project"
    shutil.copytree(undisturbed / "before", project)
    with crew(project, tmp_path) as workers:
        prepare_for(command, undisturbed, workers)
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(b"x" * (free - room))
        full = workers.start(command)
        if full.end() == 0:
            assert room >= 30_000
        else:
            assert full.end() == 2, full.said()
            assert full.said().count("\n") == 1
            assert "No space left on device" in full.said()
        (small_disk / "filler").unlink()
        workers.do(command)
        assert same(undisturbed, workers, command)


# Rivals


@pytest.mark.parametrize("command", MADE, ids=lambda command: command.split()[0])
def test_of_two_processes_on_a_cell_one_waits_and_takes_what_the_other_made(
    command: str, undisturbed: Path, fresh: Crew
) -> None:
    prepare_for(command, undisturbed, fresh)
    first, second = fresh.start(command), fresh.start(command)
    assert (first.end(), second.end()) == (0, 0), first.said() + second.said()
    waiting = [worker for worker in (first, second) if "waiting for it" in worker.said()]
    for worker in waiting:
        holder = (first if worker is second else second).process.pid
        names = f"process {holder} on", "another process;"  # the latter in the instant before a holder says who it is
        assert worker.said().partition(" is being made by ")[2].startswith(names), worker.said()
        assert worker.did("update") == worker.did("draw") == []
    assert len(waiting) <= 1
    assert same(undisturbed, fresh, command)


def test_a_killed_rival_leaves_its_work_to_the_one_who_waits(undisturbed: Path, fresh: Crew) -> None:
    first = fresh.start(TRAIN, at={"update 10": signal.SIGSTOP})
    wait_until(lambda: "10" in first.did("update") or not first.process.is_alive(), first.said)
    second = fresh.start(TRAIN)
    wait_until(lambda: "waiting for it" in second.said() or not second.process.is_alive(), second.said)
    first.process.kill()
    assert second.end() == 0, second.said()
    assert second.did("update")[0] == "9"
    assert same(undisturbed, fresh, TRAIN)
