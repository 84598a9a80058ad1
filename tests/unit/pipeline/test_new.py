"""A new study of one's own pictures: what fits a budget, what is written, and what is refused."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from unit import params_factory

from ipdiff import cli
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.planning import plan
from ipdiff.pipeline.commands.study.new import create, features, fit, presets, speeds, text
from ipdiff.pipeline.commands.study.new.fit import Choice, Speed, Work
from ipdiff.pipeline.engines import dvc_files

WORK = Work(
    images=2000, gammas=(0.0, 0.1), seeds=2, jobs=2, prepare=5, classifier=0.05, feature=4e-4, distance=2.5
)  # fmt: skip
TRAIN = {"tiny": 600.0, "small": 200.0, "medium": 40.0, "full": 8.0}
SPEEDS = [Speed(preset, TRAIN[preset.name], 4 * TRAIN[preset.name]) for preset in presets.of_size(16)]

works = st.builds(
    Work,
    images=st.integers(20, 10**6),
    gammas=st.sampled_from([(0.0, 0.1), (0.0, 0.05, 0.1, 0.2)]),
    seeds=st.integers(1, 5),
    jobs=st.integers(1, 64),
    prepare=st.floats(0, 100),
    classifier=st.just(0.0) | st.floats(1e-4, 1),
    feature=st.floats(0, 0.1),
    distance=st.floats(0.01, 30),
)
factors = st.floats(0.01, 1000)
budgets = st.floats(1, 1e7)


def fitted(work: Work, factor: float, budget: float) -> Choice | None:
    known = [replace(speed, train=factor * speed.train, sample=factor * speed.sample) for speed in SPEEDS]
    try:
        return fit.fit(work, known, budget)
    except UserError:
        return None


# Fitting


@given(works, factors, budgets)
def test_what_is_chosen_is_within_the_budget(work: Work, factor: float, budget: float) -> None:
    choice = fitted(work, factor, budget)
    if choice is not None:
        assert 0 < choice.seconds <= budget
        assert choice.seconds <= choice.one_by_one + 1e-6
        assert choice.updates >= fit.LEAST_UPDATES
        assert choice.samples >= fit.FEWEST
        assert choice.drift_images <= work.images


@given(works, factors, budgets, st.floats(1, 100))
def test_more_time_is_never_less_study(work: Work, factor: float, budget: float, more: float) -> None:
    less, more_of_it = fitted(work, factor, budget), fitted(work, factor, budget * more)
    if less is None:
        return
    assert more_of_it is not None
    ranks = [speed.preset.name for speed in SPEEDS]
    assert ranks.index(more_of_it.preset.name) >= ranks.index(less.preset.name)
    if more_of_it.preset == less.preset:
        assert len(more_of_it.steps) >= len(less.steps)
        if more_of_it.steps == less.steps:
            assert more_of_it.updates >= less.updates
            assert more_of_it.samples >= less.samples


def test_a_wider_network_is_taken_when_there_is_time_for_it() -> None:
    names = [found.preset.name for hours in (0.2, 10, 100, 10_000) if (found := fitted(WORK, 1.0, 3600 * hours))]
    assert names == ["tiny", "small", "medium", "full"]
    assert fitted(WORK, 1.0, 1e8) == fitted(WORK, 1.0, 1e9)  # the paper's length is enough


def test_a_budget_that_is_too_short_says_which_is_not() -> None:
    with pytest.raises(UserError, match="--budget 5s is too short for 2 gammas x 2 seeds here; give about") as caught:
        fit.fit(WORK, SPEEDS, 5)
    named = str(caught.value).partition("give about ")[2].partition(",")[0]
    assert fit.fit(WORK, SPEEDS, 1.1 * fit.seconds_of(named)).preset.name == "tiny"  # as it is rounded
    assert str(caught.value).endswith("or fewer --gammas or --seeds, or a smaller --size")
    with pytest.raises(UserError, match="or fewer --gammas or --seeds$"):
        fit.fit(WORK, SPEEDS, 5, smaller=False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30min", 5400), ("45s", 45), ("1.5d", 129600)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert fit.seconds_of(text) == seconds


@given(st.floats(1, 1e7))
def test_a_printed_duration_can_be_given(seconds: float) -> None:
    assert fit.seconds_of(fit.duration(seconds)) == pytest.approx(seconds, rel=0.06, abs=1)


@pytest.mark.parametrize("text", ["2", "h", "two hours", "-1h", "0s", "1h 30m", ""])
def test_other_words_are_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="--budget is"):
        fit.seconds_of(text)


# Networks


@pytest.mark.parametrize("size", presets.SIZES)
def test_every_preset_can_be_built_and_the_widest_is_the_paper_s(size: int) -> None:
    weights = []
    for preset in presets.of_size(size):
        preset.network.check(size)
        weights.append(speeds.parameters(presets.run_spec(preset, 3, size, 1000, Compute())))
    assert weights == sorted(weights)
    published = {32: 57_094_662, 64: 295_136_454, 128: 542_811_398}
    assert weights[-1] == published.get(size, weights[-1])


@given(st.integers(fit.LEAST_UPDATES, 10**6), st.sampled_from(presets.SIZES), st.integers(0, 3))
def test_every_length_of_training_is_a_valid_one(updates: int, size: int, place: int) -> None:
    found = presets.training(presets.of_size(size)[place], updates, "cpu")
    assert found.lr_warmup <= updates
    assert 0.9 <= found.ema_decay <= 0.9999


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 0.05)
    found, limit = speeds.of_networks(presets.of_size(16)[:2], 1, 16, Compute(), room=1e9, runs=1)
    assert limit > 0
    assert [speed.preset.name for speed in found] == ["tiny", "small"]
    assert all(speed.train > 0 and speed.sample > 0 for speed in found)
    assert len(speeds.of_networks(presets.of_size(16)[:2], 1, 16, Compute(), room=1e-6, runs=1)[0]) == 1


@pytest.mark.parametrize(
    ("load", "wall", "cpu", "said"),
    [
        (0.3, 3.0, 2.9, ""),
        (0.9, 3.0, 2.5, ""),
        (0.0, 0.01, 0.001, ""),  # too short to tell
        (2.0, 3.0, 1.5, "about 2 times as long"),
        (2.0, 3.0, 3.0, "up to 2 times as long"),
        (4.2, 6.0, 3.0, "2 to 3 times as long"),
        (0.0, 6.0, 2.0, "up to 3 times as long"),
    ],
)
def test_what_others_take_of_the_machine_is_said(
    monkeypatch: pytest.MonkeyPatch, load: float, wall: float, cpu: float, said: str
) -> None:
    monkeypatch.setattr(speeds, "all_cores", lambda: 2)
    assert speeds.longer(load, wall, cpu) == said


# The command


def pictures(root: Path, modes: tuple[str, ...] = ("RGB",), folders: tuple[str, ...] = ("a", "b"), n: int = 12) -> Path:
    noise = np.random.default_rng(0)
    for i in range(n):
        folder = root / folders[i % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise.integers(0, 256, (18, 20, 3), np.uint8)).convert(modes[i % len(modes)])
        image.save(folder / f"{i}.png")
    return root


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's speed is that of SPEEDS: what a study looks like must not depend on who else is at work."""

    def known(candidates: list[presets.Preset], *_: object, **__: object) -> tuple[list[Speed], float]:
        return [Speed(preset, TRAIN[preset.name], 4 * TRAIN[preset.name]) for preset in candidates], 50.0

    monkeypatch.setattr(speeds, "of_networks", known)
    monkeypatch.setattr(speeds, "of_distances", lambda dimensions: (0.5, 1e-5))
    monkeypatch.setattr(speeds, "of_classifier", lambda *_: (1e-4, 0.05))
    monkeypatch.setattr(speeds, "cores", lambda: 2)
    monkeypatch.setattr(speeds, "all_cores", lambda: 2)
    monkeypatch.setattr(speeds, "load", lambda: 0.0)


New = Callable[..., tuple[int, str, str]]


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: None) -> New:
    """Run `ipdiff new` in a project with one study; returns exit code, output and errors."""
    params_factory.write(tmp_path, params_factory.small())
    monkeypatch.chdir(tmp_path)

    def called(name: str, images: Path | str, *more: str, size: int = 16) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["new", name, "--images", str(images), "--size", str(size), *more])
        return code, *capsys.readouterr()

    return called


def folders() -> set[str]:
    return {path.name for path in Path("studies").iterdir()}


def test_a_study_is_written_that_every_check_accepts(new: New, tmp_path: Path) -> None:
    images = pictures(tmp_path / "raw/pics", ("RGB", "RGBA", "L"))
    (images / "a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, said, errors = new("mine", images, "--gammas", "0.05,0.1", "--budget", "20min", "--skip-broken")
    assert (code, errors) == (0, "")
    assert "broken     a/broken.png" in said
    known = grid.load()
    params = known.studies.load("mine")
    assert {name: model.gamma for name, model in params.models.items()} == {
        "adm": 0.0, "adm-ip-g005": 0.05, "adm-ip-g01": 0.1,
    }  # fmt: skip
    assert params.seeds == {"default": [0, 1]}
    settings = params.dataset("mine")
    assert (settings.features, settings.source.modes, settings.source.skip_broken) == ("classifier", "convert", True)
    assert (settings.source.raw, settings.source.num_images) == ("raw/pics", 12)
    assert params.tables["gamma"].metrics == ["fid", "sfid", "pixel_fd"]
    assert set(params.tables["gamma"].compare) == {"adm-ip-g005", "adm-ip-g01"}
    assert {figure.kind for figure in params.figures.values()} == {"lines", "samples", "drift"}
    assert Path("studies/mine/dvc.yaml").read_text() == dvc_files.render(known, "mine")
    for cell in known.study("mine"):
        known.param_values(cell)  # every key that decides it is written out
    assert plan.run(["mine"]).unknown == []
    lines = Path("studies/mine/params.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= text.WIDTH  # DVC keeps its layout then
    assert folders() == {"small", "mine"}


def test_what_is_written_describes_the_runs_that_were_measured(new: New, tmp_path: Path) -> None:
    new("mine", pictures(tmp_path / "raw"), "--budget", "20min")
    params = config.Studies().load("mine")
    settings = params.dataset("mine")
    updates = settings.last_step("adm")
    expected = presets.run_spec(presets.of_size(16)[0], 3, 16, updates, settings.compute)
    assert params.run_spec("mine", "adm", 0) == expected
    assert params.run_spec("mine", "adm-ip-g01", 0) == replace(
        expected, objective=replace(expected.objective, gamma=0.1)
    )


def test_what_is_to_be_minded_is_said(new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(tmp_path / "raw")
    said = new("mine", images, "--dry-run")[1]
    assert "mind       pictures are mirrored at random; set flip: false for text and digits\n" in said
    assert "busy" not in said
    assert "grey" not in said
    monkeypatch.setattr(speeds, "load", lambda: 4.2)
    said = new("mine", images, "--dry-run", "--device", "cpu")[1]
    assert "mind       the machine is busy (load 4.2 on 2 cores): the study may take up to 3 times as long\n" in said
    for path in images.rglob("*.png"):
        Image.open(path).convert("L").convert("RGB").save(path)
    said = new("mine", images, "--dry-run")[1]
    assert "all 12 pictures are grey but stored as colour: channels: 1 with modes: convert would do" in said


def test_features_are_refused_before_the_pictures_are_read(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pictures were read")

    monkeypatch.setattr(create, "survey", never)
    code, said, errors = new("mine", pictures(tmp_path / "raw"), "--features", "nosuch.pt")
    assert (code, said) == (2, "")
    assert "--features is 'nosuch.pt': no such file, and none of" in errors


def test_a_dry_run_says_the_same_and_writes_nothing(new: New, tmp_path: Path) -> None:
    images = pictures(tmp_path / "raw")
    code, dry, _ = new("mine", images, "--dry-run")
    assert (code, folders()) == (0, {"small"})
    _, wet, _ = new("mine", images)
    assert [line for line in dry.splitlines() if line.split()[0] not in ("next", "then", "wrote")] == [
        line for line in wet.splitlines() if line.split()[0] not in ("next", "then", "wrote")
    ]


def test_without_labels_there_are_pixels_or_a_network_that_is_named(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IPDIFF_INCEPTION", raising=False)
    images = pictures(tmp_path / "raw", ("L",), ("flat",))
    code, said, _ = new("mine", images, "--dry-run")
    assert code == 0
    assert "the pixels themselves. There are no labels; Inception" in said
    code, said, _ = new("mine", images, "--budget", "20min", "--features", "pixels")
    params = config.Studies().load("mine")
    assert (params.dataset("mine").source.channels, params.tables["gamma"].metrics) == (1, ["fid"])
    (tmp_path / "inception.pt").write_bytes(b"")
    monkeypatch.setenv("IPDIFF_INCEPTION", str(tmp_path / "inception.pt"))
    code, said, _ = new("other", images, "--budget", "2d")
    assert code == 0
    assert config.Studies().load("other").dataset("other").features == "inception"


def test_a_network_of_one_s_own_is_opened_and_its_width_learnt(new: New, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 32, 3 * 32).mean(dim=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what the feature takes
        torch.jit.trace(Net().eval(), torch.rand(2, 3, 32, 32)).save(str(tmp_path / "net.pt"))
    images = pictures(tmp_path / "raw")
    code, _, errors = new("mine", images, "--features", "net.pt")
    assert code == 2
    assert "net.pt: gives [98, 96] for images [2, 3, 224, 224]; expected [2, width]" in errors
    assert new("mine", images, "--features", "net.pt", "--feature-size", "32")[0] == 0
    settings = config.Studies().load("mine").dataset("mine").torchscript
    assert settings is not None
    assert (settings.path, settings.width, settings.image_size) == ("net.pt", 96, 32)


def test_models_go_on_from_a_checkpoint_whose_network_is_found(new: New, tmp_path: Path) -> None:
    spec = presets.run_spec(presets.of_size(16)[1], 3, 16, 100, Compute())
    torch.save(build.network(spec).state_dict(), tmp_path / "ema_0.9999_001000.pt")
    images = pictures(tmp_path / "raw", ("L",))
    code, said, _ = new("mine", images, "--from-checkpoint", "ema_0.9999_001000.pt", "--budget", "30min")
    assert code == 0
    assert "ipdiff import ema_0.9999_001000.pt --as mine/pretrained --step 1000" in said
    params = config.Studies().load("mine")
    assert params.dataset("mine").source.channels == 3  # as the checkpoint's
    assert params.models["pretrained"].imported
    assert config.start_of(params, "mine", "adm-ip-g01") == ("mine", "pretrained", 1000)
    assert params.run_spec("mine", "adm", 0).network == spec.network
    code, _, errors = new("other", images, "--from-checkpoint", "ema_0.9999_001000.pt", size=32)
    assert code == 2
    assert "none of the networks for 32 pixels (tiny, small, medium, full) has these weights" in errors


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("small", (), "study 'small' is here already"),
        ("digits", (), "study 'digits' is here already"),
        ("photos", (), "'photos' is a data set of the study small already"),
        ("a/b", (), "cannot be part of a path"),
        ("train", (), "'train' is a name that the workflow needs itself; choose another one"),
        ("2024", (), "'2024' is a number or another value to YAML"),
        ("x", ("--gammas", "0.1,0.1"), "stands twice"),
        ("x", ("--gammas", "0"), "name a strength above 0"),
        ("x", ("--gammas", "nan"), "write numbers in 0..1"),
        ("x", ("--budget", "1s"), "or fewer --gammas or --seeds\n"),
        ("x", ("--budget", "soon"), "--budget is 'soon'"),
        ("x", ("--seeds", "0"), "--seeds is 0"),
        ("x", ("--features", "incepton"), "did you mean 'inception'?"),
        ("x", ("--from-checkpoint", "nothing.pt"), "nothing.pt is missing"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    new: New, tmp_path: Path, name: str, more: tuple[str, ...], said: str
) -> None:
    code, _, errors = new(name, pictures(tmp_path / "raw"), *more)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert folders() == {"small"}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nowhere", "--images nowhere: no such file or directory"),
        (".", "holds the project itself"),
        (
            "raw",
            "raw: top.png lies beside the folders that are the labels (a, b); move it into one of them or away, or ",
        ),
        ("one", "--features classifier needs pictures in two folders or more"),
        (
            "broken.zip",
            "broken.zip: 1 picture (the first: b.png) cannot be read; mend or remove them, or give --skip-br",
        ),
        ("params.yaml", "params.yaml: neither a directory nor a readable .zip or .tar.gz"),
        ("odd {x} name", "--images odd {x} name: neither engine reads braces in a path; rename it"),
        ("links", "links/a/gone.png: a link to nothing, or no plain file; DVC cannot record it: remove it"),
        ("odd\u2028name", "ipdiff: studies/x/params.yaml line 25: U+2028 is a line break in YAML 1.1 alone"),
    ],
)
def test_pictures_that_cannot_be_used_are_one_line(new: New, tmp_path: Path, images: str, said: str) -> None:
    pictures(tmp_path / "raw")
    Image.new("RGB", (20, 20)).save(tmp_path / "raw/top.png")
    pictures(tmp_path / "one", folders=("a",))
    pictures(tmp_path / "odd\u2028name")
    pictures(tmp_path / "odd {x} name")
    pictures(tmp_path / "links")
    (tmp_path / "links/a/gone.png").symlink_to("nowhere.png")
    (tmp_path / "params.yaml").write_text("text")
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("a.png", file.getvalue())
        archive.writestr("b.png", file.getvalue()[:50])
    code, _, errors = new("x", images, *(("--features", "classifier") if images == "one" else ()))
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert folders() == {"small"}


def test_names_of_models_differ_where_strengths_do() -> None:
    gammas = [0.0, 0.001, 0.01, 0.1, 0.11, 1.0, 0.05, 0.5]
    assert len({text.model_of(gamma) for gamma in gammas}) == len(gammas)


def test_dimensions_are_those_that_are_measured() -> None:
    chosen = features.Chosen("pixels", None, "")
    assert chosen.dimensions(3, 16) == (768, 768)
    assert features.Chosen("inception", None, "").dimensions(1, 128)[-1] == 1024
