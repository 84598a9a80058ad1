"""published/store: a clone brings checkpoints, numbers and figures from the repository itself, and draws with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from workflow.conftest import ROOT, copied_project, once
from workflow.engines import cells, run

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import in_git
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.store.artifact import file_digest
from ipdiff.pipeline.store.sheet import png

pytestmark = pytest.mark.workflow

OBJECTS = "published/store/files/md5"
SAMPLES = "samples/digits_mini/adm-ip/s0/8/ancestral-5"
DRAW = ("ipdiff", "sample", "--dataset", "digits_mini", "--model", "adm-ip", "--seed", "0", "--step", "8", "--sampler",
        "ancestral-5")  # fmt: skip


def publish(made: Path, project: Path) -> None:
    """A project whose mini study is published, the store included, and committed. It has no remote but the store."""
    copied_project(made, project)
    shutil.rmtree(project / "published")
    run(project, "ipdiff", "publish", "mini", "--store")
    run(project, "git", "add", "--all", "published", "studies/mini/dvc.lock")
    run(project, "git", "commit", "--quiet", "-m", "published")


@pytest.fixture(scope="session")
def published(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published project. To be read only."""
    return once(tmp_path_factory, "in_git", lambda folder: publish(by_snakemake, folder))


@pytest.fixture
def stranger(published: Path, tmp_path: Path) -> Path:
    """A clone, made where git turns line ends into those of Windows."""
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    run(tmp_path, "git", "clone", "--quiet", *windows, str(published), "clone")
    return tmp_path / "clone"


def objects(project: Path) -> dict[str, bytes]:
    """What the store keeps: path -> bytes, of every file in it."""
    folder = project / in_git.STORE
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(project: Path, study: str) -> dict[str, str]:
    """Path -> digest of what the store is to keep of a study, by dvc.lock."""
    lock = dvc_files.lock_of(study).as_posix()
    recorded = dvc_files.outputs_in({lock: (project / lock).read_bytes()})
    wanted = [path for path in in_git.part(grid.load(project), study) if path in recorded]
    return {path: recorded[path][0] for path in wanted if recorded[path][1] <= in_git.LARGEST}


def tiles(path: Path, size: int) -> NDArray[np.uint8]:
    """The images of a sheet, eight a line: [n, size, size]."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    lines, columns = pixels.shape[0] // size, pixels.shape[1] // size
    return pixels.reshape(lines, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)


def test_a_clone_pulls_verifies_and_draws_without_a_server(published: Path, stranger: Path) -> None:
    said = run(stranger, "ipdiff", "pull").stdout.splitlines()
    results = {path for cell in cells(published).values() for path in cell.outputs if cell.stage.kind == "result"}
    recipes = {cell.outputs[-1] for cell in cells(published).values()}
    last = {path for cell in cells(published).values() if cell.directory.startswith("runs/") for path in cell.outputs}
    last = {path for path in last if "/8/" in path}
    here = {path for cell in cells(published).values() for path in cell.outputs if (stranger / path).exists()}
    others = here - results - recipes - last
    assert here >= results | recipes | last
    assert {path.partition("/")[0] for path in others} == {"analysis", "drift", "features", "reference"}
    absent = {path for cell in cells(published).values() for path in cell.outputs} - here
    assert said[0].startswith(f"{len(here)} of the files asked for are here and verified")
    assert said[1].startswith(f"{len(absent)} files not brought (data, halves, neighbours, runs, samples, states): ")
    assert ", 0 fetched now)" in run(stranger, "ipdiff", "pull", "mini").stdout
    verified = run(stranger, "ipdiff", "verify", "--study", "mini").stdout
    assert verified.startswith(f"verified {len(cells(published))} artifacts, {len(here)} files")
    assert run(stranger, "git", "status", "--short").stdout == ""
    whole = np.load(published / SAMPLES / "samples.npz")["arr_0"][..., 0]
    run(stranger, *DRAW, "--index", "7", "--out", "7.png")
    with Image.open(stranger / "7.png") as image:
        assert np.array_equal(np.asarray(image), whole[7])
    run(stranger, *DRAW, "--index", "20-45", "--out", "some.png")
    assert np.array_equal(tiles(stranger / "some.png", 8)[:26], whole[20:46])
    preview = stranger / f"published/mini/{SAMPLES}.png"
    assert np.array_equal(tiles(preview, 8), whole[:64])
    run(stranger, *DRAW, "--index", "0-63", "--out", "first.png")
    assert (stranger / "first.png").read_bytes() == preview.read_bytes()


def test_what_is_named_has_to_come(stranger: Path) -> None:
    def said(*targets: str) -> str:
        (line,) = run(stranger, "ipdiff", "pull", *targets, code=2).stderr.splitlines()
        return line

    assert "1 file not brought (samples): published/store keeps only a part" in said(f"{SAMPLES}/samples.npz")
    assert "not brought (data, " in said("table:mini/table1")
    assert not (stranger / "tables").exists()
    run(stranger, "ipdiff", "pull", "tables/mini/table1")
    assert "1 file not brought" in said("--remote", "published", f"{SAMPLES}/samples.npz")


@pytest.mark.slow
def test_a_damaged_object_is_named_with_its_remedy(stranger: Path) -> None:
    ema = "runs/digits_mini/adm-ip/s0/8/ema.safetensors"
    digest = kept(stranger, "mini")[ema]
    place = stranger / OBJECTS / digest[:2] / digest[2:]
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    (line,) = run(stranger, "ipdiff", "pull", ema, code=2).stderr.splitlines()
    assert line == f"ipdiff: {ema} did not come: the copy in published/store is damaged; git checkout published/store"
    assert not (stranger / ema).exists()
    run(stranger, "git", "checkout", "published/store")
    run(stranger, "ipdiff", "pull", ema)
    assert file_digest(stranger / ema) == digest


def test_a_default_remote_goes_before_the_store_and_nothing_is_pushed_to_it(stranger: Path, tmp_path: Path) -> None:
    said = run(stranger, "dvc", "push", "studies/mini/dvc.yaml", code=1).stderr
    assert "no remote specified" in said
    (tmp_path / "empty").mkdir()
    run(stranger, "dvc", "remote", "add", "--local", "--default", "empty", str(tmp_path / "empty"))
    run(stranger, "ipdiff", "pull", "tables/mini/table1", code=2)
    run(stranger, "ipdiff", "pull", "--remote", "published", "tables/mini/table1")


@pytest.mark.slow
def test_making_it_again_changes_nothing_and_drops_what_is_of_no_use(
    published: Path, copy: Callable[[Path], Path]
) -> None:
    project = copy(published)
    before = objects(project)
    assert set(before) == {f"files/md5/{digest[:2]}/{digest[2:]}" for digest in kept(project, "mini").values()}
    stray = project / OBJECTS / "00" / "11223344556677889900aabbccddee"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("of an earlier commit")
    broken = project / in_git.STORE / next(iter(before))
    broken.write_bytes(b"damaged")
    said = run(project, "ipdiff", "publish", "mini", "--store").stdout.splitlines()[-1]
    assert said.startswith(f"published/store: {len(before)} files, ")
    assert said.endswith(" of at most 32.0 MB (mini); 1 new, 1 dropped")
    assert objects(project) == before
    shutil.rmtree(project / ".dvc/cache")  # what was published earlier may have gone from here
    assert run(project, "ipdiff", "publish", "mini", "--store").stdout.endswith("; 0 new, 0 dropped\n")
    assert run(project, "git", "status", "--short").stdout == ""


def test_too_much_or_too_little_is_refused_before_anything_is_written(
    published: Path, copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy(published)
    before = objects(project)
    monkeypatch.chdir(project)
    size = sum(map(len, before.values()))
    assert in_git.plan(grid.load(), ["mini"], limit=size).size == size
    with pytest.raises(UserError, match=r"would hold \d+\.\d MB \(mini; the largest file is .*at most"):
        in_git.plan(grid.load(), ["mini"], limit=size - 1)
    ema = project / "runs/digits_mini/adm-ip/s0/8/ema.safetensors"
    digest = file_digest(ema)
    shutil.rmtree(project / ".dvc/cache")
    (project / OBJECTS / digest[:2] / digest[2:]).unlink()
    ema.chmod(0o644)
    ema.write_bytes(b"not what was recorded")
    shutil.rmtree(project / "published/mini")
    said = run(project, "ipdiff", "publish", "mini", "--store", code=2).stderr
    assert f"{ema.relative_to(project)}: what dvc.lock records ({digest}) is not here" in said
    assert not (project / "published/mini").exists()


@pytest.mark.slow
def test_a_study_that_is_published_already_stays_in_the_store(published: Path, copy: Callable[[Path], Path]) -> None:
    """Its objects are taken from the store itself where they are nowhere else here."""
    project = copy(published)
    text = (project / "studies/mini/params.yaml").read_text()
    other = project / "studies/other/params.yaml"
    other.parent.mkdir()
    other.write_text(text.replace("digits_mini", "digits_other"))
    run(project, "ipdiff", "grid", "--write")
    run(project, "snakemake", "--cores", "2", "other")
    mini = set(objects(project))
    for name in ("runs", "metrics", "features"):
        shutil.rmtree(project / name / "digits_mini")
    shutil.rmtree(project / "tables/mini")
    cache = project / ".dvc/cache/files/md5"
    for digest in kept(project, "mini").values():
        (cache / digest[:2] / digest[2:]).unlink(missing_ok=True)
    said = run(project, "ipdiff", "publish", "other", "--store").stdout
    assert " (mini, other); " in said
    assert set(objects(project)) > mini


# What this repository publishes


PUBLISHED = [path.parent.name for path in sorted((ROOT / "published").glob("*/metrics.json"))]


@pytest.mark.parametrize("study", PUBLISHED)
def test_the_stranger_of_this_repository(study: str, tmp_path: Path) -> None:
    """Clone, pull, verify, draw, from what is committed here; another type of CPU may round to another grey level."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: a downloaded copy cannot be cloned")
    run(tmp_path, "git", "clone", "--quiet", str(ROOT), "clone")
    clone = tmp_path / "clone"
    found = objects(clone)
    assert sum(map(len, found.values())) <= in_git.LIMIT
    wanted = {f"files/md5/{digest[:2]}/{digest[2:]}" for name in PUBLISHED for digest in kept(clone, name).values()}
    assert set(found) == wanted, "published/store is not that of dvc.lock: ipdiff publish STUDY --store"
    run(clone, "ipdiff", "pull", study)
    assert "; 0 problems" in run(clone, "ipdiff", "verify", "--study", study).stdout
    drawn = [cell for cell in cells(clone, study).values() if cell.stage.verb == "sample"]
    drawn = [cell for cell in drawn if all((clone / path).exists() for path in cell.inputs)]
    chosen = [cell for cell in drawn if cell.bindings["sampler"] == "ancestral-20"][-2:]
    assert chosen
    for cell in chosen:
        run(clone, *cell.command.split(), "--index", "7", "--out", "7.png")
        with Image.open(clone / "7.png") as image:
            ours = np.asarray(image).astype(int)
        theirs = tiles(clone / f"published/{study}/{cell.directory}.png", ours.shape[0])[7]
        assert abs(ours - theirs).max() <= 1, cell.directory


def test_a_sheet_has_every_pixel_where_it_belongs(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (19, 4, 5, 3), dtype=np.uint8)
    (tmp_path / "sheet.png").write_bytes(png(images))
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (3 * 4, 8 * 5, 3)
    for place, one in enumerate(images):
        top, left = place // 8 * 4, place % 8 * 5
        assert np.array_equal(pixels[top : top + 4, left : left + 5], one)
    (tmp_path / "one.png").write_bytes(png(images[:1, ..., :1]))
    with Image.open(tmp_path / "one.png") as image:
        assert np.array_equal(np.asarray(image), images[0, ..., 0])
