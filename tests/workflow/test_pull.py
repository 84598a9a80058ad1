"""The store: a published study is pulled from every kind of remote, verified, and damage is found wherever it is."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from patience import wait_until
from PIL import Image
from workflow.engines import cells, environment, run

from ipdiff import cli
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid
from ipdiff.pipeline.store import dvc_cache
from ipdiff.pipeline.store.artifact import file_digest
from ipdiff.work.recipes import RECIPE
from workflow import servers

pytestmark = pytest.mark.workflow

EMA = "runs/digits_mini/adm-ip/s0/8/ema.safetensors"
IMAGES = "data/digits_mini/images.npy"
SAMPLES = "samples/digits_mini/adm-ip/s0/8/ancestral-5"


def grid_of(project: Path) -> Grid:
    return grid.load(project)


def outputs(project: Path) -> list[str]:
    return [path for cell in grid_of(project).study("mini") for path in cell.outputs]


def digests(project: Path) -> dict[str, str]:
    """Digests of the outputs that are there."""
    return {path: file_digest(project / path) for path in outputs(project) if (project / path).exists()}


def recorded(project: Path) -> dict[str, str]:
    path = dvc_files.lock_of("mini").as_posix()
    return dvc_files.digests_in({path: (project / path).read_bytes()})


def cached(project: Path, path: str) -> Path:
    """Where DVC's cache keeps an output."""
    return dvc_cache.path_in(project / ".dvc/cache/files/md5", recorded(project)[path])


def store_of(origin: Path) -> Path:
    return origin.parent / "store"


def use_remote(project: Path, url: str, **options: str) -> None:
    """Make the clone's default remote another one, in its private configuration."""
    run(project, "dvc", "remote", "add", "--local", "--default", "--force", "other", url)
    for name, value in options.items():
        run(project, "dvc", "remote", "modify", "--local", "other", name, value)


def scramble(project: Path) -> None:
    """Give every output some time of the last month."""
    days = random.Random(0)
    for path in outputs(project):
        moment = time.time() - days.uniform(0, 30 * 86400)
        os.utime(project / path, (moment, moment))


def flip(path: Path, at: int = -7) -> None:
    """Flip one bit; size and times stay, so that neither engine can notice."""
    times, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def assert_complete(project: Path, origin: Path) -> None:
    """Every output is here, and both engines and `ipdiff verify` agree that all is well."""
    assert digests(project) == digests(origin)
    assert "Nothing to be done" in run(project, "snakemake", "--cores", "1", "-n", "mini").stdout
    assert "up to date" in run(project, "dvc", "status", "studies/mini/dvc.yaml").stdout
    assert " 0 problems" in run(project, "ipdiff", "verify", "--study", "mini").stdout
    assert run(project, "git", "status", "--short").stdout == ""


# Remotes


def test_a_clone_pulls_everything_and_both_engines_accept_it(origin: Path, clone: Path) -> None:
    said = run(clone, "ipdiff", "pull").stdout
    assert f"{len(outputs(clone))} of the files asked for are here and verified ({len(cells(clone))} artifacts" in said
    scramble(clone)
    assert ", 0 fetched now)" in run(clone, "ipdiff", "pull").stdout
    assert_complete(clone, origin)


def test_metrics_only(clone: Path) -> None:
    run(clone, "ipdiff", "pull", "--metrics-only")
    here = {path for path in outputs(clone) if (clone / path).exists()}
    small = ("metrics/", "tables/", "figures/", "report/")
    assert here == {path for path in outputs(clone) if path.startswith(small) or path.endswith(RECIPE)}
    assert "ancestral-5" in run(clone, "dvc", "metrics", "show", "tables/mini/summary.json").stdout
    assert f"verified {len(cells(clone))} artifacts" in run(clone, "ipdiff", "verify", "--study", "mini").stdout


def test_one_table_and_what_it_was_made_from(clone: Path) -> None:
    run(clone, "ipdiff", "pull", "table:mini/table1")
    known = grid_of(clone)
    table = known.cell("table", study="mini", table="table1")
    assert set(digests(clone)) == {path for cell in known.needed(table) for path in cell.outputs}
    for path in reversed(digests(clone)):
        os.utime(clone / path)
    assert "Nothing to be done" in run(clone, "snakemake", "--cores", "1", "-n", table.outputs[0]).stdout


def test_one_checkpoint_is_enough_to_draw_an_image(origin: Path, clone: Path) -> None:
    run(clone, "ipdiff", "pull", EMA)
    assert set(digests(clone)) == {EMA, str(Path(EMA).with_name(RECIPE))}
    names = ("--dataset", "digits_mini", "--model", "adm-ip", "--seed", "0", "--step", "8", "--sampler", "ancestral-5")
    run(clone, "ipdiff", "sample", *names, "--index", "3", "--out", "3.png")
    whole = np.load(origin / SAMPLES / "samples.npz")["arr_0"]
    with Image.open(clone / "3.png") as image:
        assert np.array_equal(np.asarray(image), whole[3].squeeze())


@pytest.mark.slow
def test_s3(origin: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with servers.s3("ipdiff-test") as endpoint:
        for project in (origin, clone):
            use_remote(project, "s3://ipdiff-test/store", endpointurl=endpoint)
        run(origin, "dvc", "push", "--quiet", "--remote", "other", "studies/mini/dvc.yaml")
        pull_in_parts(clone, "other")
    assert_complete(clone, origin)


@pytest.mark.slow
def test_ssh(origin: Path, clone: Path, tmp_path: Path) -> None:
    with servers.sshd(tmp_path) as (port, key):
        for project in (origin, clone):
            use_remote(project, f"ssh://127.0.0.1:{port}{tmp_path}/remote", keyfile=str(key))
        run(origin, "dvc", "push", "--quiet", "--remote", "other", "studies/mini/dvc.yaml")
        pull_in_parts(clone, "other")
    assert_complete(clone, origin)


@pytest.mark.slow
def test_a_read_only_http_server(origin: Path, clone: Path) -> None:
    with servers.http(store_of(origin)) as url:
        use_remote(clone, url)
        pull_in_parts(clone, "other")
    assert_complete(clone, origin)


@pytest.mark.slow
def test_a_strangers_path_to_a_server(origin: Path) -> None:
    options = {"STUDY": "mini", "SAMPLER": "ancestral-5", "OUT": "work/pulled.png"}
    with servers.http(store_of(origin)) as url:
        said = run(origin, "examples/demo_pull.sh", **options, REMOTE_URL=url)
    assert said.stdout.splitlines()[-1] == f"images: {origin}/work/pulled.png"
    with Image.open(origin / "work/pulled.png") as image:
        assert image.size == (64, 64)


def pull_in_parts(project: Path, remote: str) -> None:
    """A checkpoint, the metrics, a table, then all, from one remote."""
    for targets in ([EMA], ["--metrics-only"], ["table:mini/table1"], ["mini"]):
        run(project, "ipdiff", "pull", "--remote", remote, *targets)


# Remotes that fail


@pytest.mark.slow
@pytest.mark.parametrize("verified_by_dvc", [False, True])
def test_a_corrupted_object_of_a_remote_is_caught(
    origin: Path, clone: Path, tmp_path: Path, verified_by_dvc: bool
) -> None:
    store = tmp_path / "store"
    shutil.copytree(store_of(origin), store)
    use_remote(clone, str(store), verify=str(verified_by_dvc).lower())
    digest = recorded(clone)[EMA]
    flip(dvc_cache.path_in(store / "files/md5", digest))
    said = one_line(run(clone, "ipdiff", "pull", code=3).stderr)
    assert EMA in said
    assert digest in said
    assert not (clone / EMA).exists()
    assert not cached(clone, EMA).exists()
    assert len(digests(clone)) == len(outputs(clone)) - 1
    flip(dvc_cache.path_in(store / "files/md5", digest))
    assert ", 1 fetched now)" in run(clone, "ipdiff", "pull").stdout
    assert_complete(clone, origin)


@pytest.mark.slow
def test_a_killed_pull_goes_on_where_it_was(origin: Path, clone: Path) -> None:
    cache = clone / ".dvc/cache/files/md5"

    def cached_objects() -> int:
        return sum(len(path.name) == 30 for path in cache.glob("*/*"))

    killed = threading.Event()

    def stall(path: str) -> None:
        if cached_objects() >= 10:
            killed.wait()

    with servers.http(store_of(origin), stall) as url:
        use_remote(clone, url)
        command = [sys.executable, "-m", "ipdiff", "pull", "--jobs", "1"]
        pulling = subprocess.Popen(command, cwd=clone, env=environment(clone), stderr=subprocess.DEVNULL)
        wait_until(lambda: cached_objects() >= 10 or pulling.poll() is not None)
        pulling.send_signal(signal.SIGKILL)
        pulling.wait()
        killed.set()
        first = cached_objects()
        said = run(clone, "ipdiff", "pull").stdout
    objects = len(set(recorded(clone).values()))
    assert 10 <= first < objects
    assert f", {objects - first} fetched now)" in said
    assert_complete(clone, origin)


@pytest.mark.slow
def test_half_of_a_pull_deleted_comes_again(origin: Path, clone: Path) -> None:
    run(clone, "ipdiff", "pull")
    for path in outputs(clone)[::2]:
        (clone / path).unlink()
    for path in outputs(clone)[::4]:
        cached(clone, path).unlink(missing_ok=True)
    run(clone, "ipdiff", "pull")
    assert_complete(clone, origin)


def test_mistakes_end_with_one_line_and_code_2(clone: Path) -> None:
    def said(*arguments: str) -> str:
        return one_line(run(clone, "ipdiff", *arguments, code=2).stderr)

    assert "did you mean 'mini'?" in said("pull", "minni")
    assert "did you mean 'table:mini/table1'?" in said("pull", "tables:mini/table1")
    assert "did you mean 'adm-ip'?" in said("pull", "runs/digits_mini/adm-ipp/s0/8/ema.safetensors")
    assert "not in dvc.lock" in said("pull", "digits")
    assert "--jobs is 0" in said("pull", "--jobs", "0")
    assert "nowhere" in said("pull", "--remote", "nowhere")
    assert "knows no revision 'nowhen'" in said("verify", "--against", "nowhen")
    run(clone, "dvc", "remote", "remove", "store")
    assert "dvc remote add --default" in said("pull")
    (clone / dvc_files.lock_of("mini")).write_text("<<<<<<< HEAD\n")
    assert "git checkout studies/mini/dvc.lock" in said("pull")
    (clone / dvc_files.lock_of("mini")).unlink()
    assert "there is no dvc.lock" in said("pull")


# The run cache


@pytest.mark.slow
def test_another_clone_restores_a_checkpoint_without_training(clone: Path) -> None:
    lock = clone / dvc_files.lock_of("mini")
    recorded_digest = recorded(clone)[EMA]
    run(clone, "git", "rm", "--quiet", str(lock))
    stage = f"studies/mini/dvc.yaml:{dvc_files.address(cell_of(clone, EMA))}"
    no_ipdiff = {"PATH": "/usr/bin:/bin"}  # the command cannot run, so it did not
    run(clone, sys.executable, "-m", "dvc", "repro", "--pull", stage, **no_ipdiff)
    assert file_digest(clone / EMA) == recorded_digest


def cell_of(project: Path, path: str) -> Cell:
    cell = grid_of(project).maker(path)
    assert cell is not None
    return cell


# Damage


@pytest.fixture(scope="module")
def whole(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with everything pulled, for tests that put back what they damage."""
    project = tmp_path_factory.mktemp("whole") / "clone"
    run(origin, "git", "clone", "--quiet", str(origin), str(project))
    run(project, "dvc", "config", "--local", "cache.type", "copy")
    run(project, "ipdiff", "pull")
    return project


@pytest.fixture
def inside(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The whole clone as the current directory; its files are put back afterwards."""
    monkeypatch.chdir(whole)
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    yield whole
    for copy in filter(Path.is_file, kept.rglob("*")):
        path = copy.relative_to(kept)
        if not path.exists() or path.read_bytes() != copy.read_bytes():
            path.unlink(missing_ok=True)
            shutil.copy2(copy, path)


def one_of_each_kind(project: Path) -> dict[str, Cell]:
    """The last cell of every stage."""
    return {cell.stage.verb: cell for cell in grid_of(project).study("mini")}


def truncate(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    for path, data in ((one, second), (other, first)):
        path.chmod(0o644)
        path.write_bytes(data)


def damaged_lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What `ipdiff verify` says of damage: a line each, then the count; exit code 3."""
    assert cli.main(["verify", "--study", "mini", *arguments]) == 3
    *lines, count = capsys.readouterr().out.splitlines()
    assert f"; {len(lines)} problem" in count
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize("place", ["workspace", "cache"])
def test_damage_to_every_file_of_every_kind_is_named(
    inside: Path, capsys: pytest.CaptureFixture[str], damage: object, place: str
) -> None:
    files = [path for cell in one_of_each_kind(inside).values() for path in cell.outputs]
    places = {path: Path(path) if place == "workspace" else cached(inside, path).relative_to(inside) for path in files}
    for path in set(places.values()):
        damage(path)  # type: ignore[operator]
    lines = damaged_lines(capsys)
    assert sorted(line.partition(": expected ")[0].partition(" (")[0] for line in lines) == sorted(
        {str(path) for path in places.values()}
    )
    for path in files:
        if place == "cache":
            assert any(recorded(inside)[path] in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["workspace", "cache"])
def test_two_swapped_files_are_both_named(inside: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    pairs = [
        ("runs/digits_mini/adm/s0/8/ema.safetensors", EMA),
        ("runs/digits_mini/adm/s0/8/loss.csv", "runs/digits_mini/adm-ip/s0/8/loss.csv"),
        (f"{SAMPLES}/samples.npz", f"{SAMPLES.replace('adm-ip', 'adm')}/samples.npz"),
        (f"{SAMPLES}/recipe.json", f"{SAMPLES.replace('adm-ip', 'adm')}/recipe.json"),
        ("data/digits_mini/images.npy", "data/digits_mini/labels.npy"),
        ("tables/mini/table1/table.csv", "tables/mini/table3/table.csv"),
        ("figures/mini/figure3/figure.png", "figures/mini/samples/figure.png"),
    ]
    named = set[str]()
    for pair in pairs:
        one, other = (Path(path) if place == "workspace" else cached(inside, path) for path in pair)
        swap(one, other)
        named |= {os.path.relpath(one), os.path.relpath(other)}
    lines = damaged_lines(capsys)
    assert {line.partition(": expected ")[0].partition(" (")[0] for line in lines} == named


@pytest.mark.slow
def test_an_untracked_artifact_is_held_against_its_recipe_alone(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = dvc_files.lock_of("mini")
    text = lock.read_text()
    lock.unlink()
    try:
        assert cli.main(["verify", "--study", "mini", "--no-cache"]) == 0
        swap(Path("tables/mini/table1/recipe.json"), Path("tables/mini/table3/recipe.json"))
        flip(Path(EMA))
        capsys.readouterr()
        lines = damaged_lines(capsys, "--no-cache")
    finally:
        lock.write_text(text)
    assert len(lines) == 3 + 2 * 3  # the tables' files are not those of the swapped recipes either


@pytest.mark.slow
def test_a_consuming_stage_refuses_a_damaged_input(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = grid_of(inside).study("mini")
    users = {path: cell for cell in cells for path in cell.inputs if not path.endswith(RECIPE)}
    kinds = {cell.stage.verb for path in users if (cell := grid_of(inside).maker(path))}
    assert kinds == {
        "prepare",
        "classifier",
        "reference",
        "neighbours",
        "halves",
        "train",
        "sample",
        "evaluate",
        "analyse",
        "drift",
        "table",
        "figure",
    }
    for path, user in users.items():
        flip(Path(path))
        try:
            assert cli.main(user.command.split()[1:]) == 3, path
            assert one_line(capsys.readouterr().err).startswith(f"ipdiff: {path}: expected")
        finally:
            flip(Path(path))


@pytest.mark.slow
def test_pull_repairs_what_verify_finds(clone: Path, origin: Path) -> None:
    run(clone, "ipdiff", "pull")
    images = cached(clone, IMAGES)
    flip(clone / EMA)
    flip(images)
    said = one_line(run(clone, "ipdiff", "pull", code=2).stderr)
    assert said.startswith(f"ipdiff: {EMA} is not what dvc.lock records")
    said = one_line(run(clone, "ipdiff", "pull", "--force", code=3).stderr)
    assert said.startswith(f"ipdiff: {images.relative_to(clone)}: expected {recorded(clone)[IMAGES]}, found")
    run(clone, "ipdiff", "pull")
    assert_complete(clone, origin)


@pytest.mark.slow
def test_damage_through_a_hard_link_is_named_and_comes_again(clone: Path, origin: Path) -> None:
    run(clone, "dvc", "config", "--local", "cache.type", "hardlink")
    run(clone, "ipdiff", "pull")
    assert (clone / EMA).stat().st_nlink == 2, "the cache does not double the disk"
    assert not (clone / EMA).stat().st_mode & 0o222, "a linked file is protected"
    flip(clone / EMA)
    said = run(clone, "ipdiff", "verify", "--study", "mini", code=3).stdout
    assert f"{EMA}: expected" in said
    assert f"({EMA})" in said  # the cache's object, which is the same file
    for _ in range(2):  # the first takes the damage away
        subprocess.run(
            ["ipdiff", "pull", "--force"], cwd=clone, env=environment(clone), capture_output=True, check=False
        )
    assert_complete(clone, origin)


# Verify by name, and against a revision


def test_what_is_named_has_to_be_there(clone: Path) -> None:
    said = run(clone, "ipdiff", "verify", "table:mini/table1", "--study", "mini", code=3).stdout.splitlines()
    assert any(line.startswith("tables/mini/table1: expected to be here") for line in said)
    assert (
        f"verified 0 artifacts, 0 files, 0 B; 0 problems; {len(cells(clone))} artifacts not here"
        in run(clone, "ipdiff", "verify", "--study", "mini").stdout
    )


def test_against_a_revision(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--against", "HEAD"]) == 0
    total = len(cells(inside))
    assert capsys.readouterr().out.startswith(
        f"{total} of {total} artifacts are byte-identical to those of HEAD; 0 differ"
    )
    flip(Path(EMA))
    flip(Path("report/mini/recipe.json"))
    for path in cell_of(inside, f"{SAMPLES}/samples.npz").outputs:
        Path(path).unlink()
    assert cli.main(["verify", "--against", "HEAD", "--study", "mini"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "differs: runs/digits_mini/adm-ip/s0/8 (ema.safetensors)",
        "same bytes, another recipe: report/mini",
        f"only in HEAD: {SAMPLES}",
        f"{total - 2} of {total - 1} artifacts are byte-identical to those of HEAD (1 with another recipe); "
        "1 differ, 0 only here, 1 only there",
    ]


def test_every_study_is_a_target() -> None:
    from ipdiff.pipeline.grid import selection

    known = grid.load()
    for study in known.studies.names:
        asked = [*known.study(study), *known.imports(study)]
        assert set(selection.select(known, [study])) == {path for cell in asked for path in cell.outputs}
