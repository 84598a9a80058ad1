"""The command line: one line on stderr and the right exit code, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from unit.params_factory import put, small, write

from ipdiff import cli
from ipdiff.cli import arguments
from ipdiff.cli.verbs import VERBS
from ipdiff.errors import IntegrityError, Preempted, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.stages import STAGES, WILDCARDS
from ipdiff.pipeline.store.artifact import file_digest
from ipdiff.work import recipes

ROOT = Path(__file__).parents[2]


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ipdiff in a project of its own."""
    monkeypatch.chdir(tmp_path)
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(pool, "1")
    write(tmp_path, small())

    def run(*argv: str) -> Done:
        try:
            code = cli.main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


def refused(done: Done, code: int, said: str) -> None:
    """One line on stderr that says so, nothing on stdout."""
    assert done.code == code
    assert done.out == ""
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    assert done.err.startswith("ipdiff")
    assert said in done.err


RUN = "--dataset tiny --model adm --seed 0 --step 8"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("prepare --dataset tyny", "dataset 'tyny' is in no study's params.yaml; did you mean 'tiny'?"),
        (
            "train --dataset tiny --model adx --seed 0 --step 8",
            "model 'adx' is not in studies/small/params.yaml; did you mean 'adm'?",
        ),
        ("train --dataset tiny --model adm --seed 0 --step 9", "step 9 is not one of datasets.tiny.checkpoints [4, 8]"),
        ("train --dataset tiny --model adm --seed zero --step 8", "seed is 'zero'; expected a whole number"),
        (
            "table --study small --table table9",
            "table 'table9' is not in studies/small/params.yaml; did you",
        ),
        (
            "figure --study small --figure figure9",
            "not in studies/small/params.yaml; did you mean 'figure3'?",
        ),
        (
            "report --study smol",
            "study 'smol' is not here, there is no studies/smol/params.yaml; did you mean 'small'?",
        ),
        ("grid --study smol", "study 'smol' is not here, there is no studies/smol/params.yaml; did you mean 'small'"),
        (
            "settings --study smol",
            "study 'smol' is not here, there is no studies/smol/params.yaml; did you mean 'small'?",
        ),
        (f"sample {RUN} --sampler euler-5", "sampler 'euler-5' is unknown; use ancestral-N, ddimETA-N"),
        (f"sample {RUN} --sampler ancestral-21", "asks for T' = 21, more than T = 20 of tiny/adm; use 1..20"),
        (f"evaluate {RUN} --sampler exposure-21", "asks for T' = 21, more than T = 20 of tiny/adm; use 1..20"),
        (f"sample {RUN} --sampler ddim0-ddim11", "no integer stride keeps 11 of T=20 steps"),
        (
            "classifier --dataset tiny",
            "data/tiny/images.npy is missing: make it (snakemake data/tiny/images.npy, or dvc",
        ),
        (f"train {RUN}", "data/tiny/images.npy is missing: make it"),
        (f"sample {RUN} --sampler ancestral-5", "runs/tiny/adm/s0/8/ema.safetensors is missing: make it"),
        ("table --study small --table table3", "metrics/tiny/adm/s0/8/ancestral-5/metrics.json is missing: make it"),
        ("prepare --dataset photos", "raw/photos.zip is missing: "),
        ("grid --check", "not what params.yaml asks for; run `ipdiff grid --write`"),
        ("watch smol", "study 'smol' is not here, there is no studies/smol/params.yaml; did you mean 'small'?"),
        ("trein --dataset tiny", "invalid choice: 'trein'; did you mean 'train'?"),
        ("watch small --jsn", "unrecognized arguments: --jsn; did you mean '--json'?"),
        ("export tiny/adm --to x --format difusers", "invalid choice: 'difusers'; did you mean 'diffusers'?"),
        ("export tiny/adm --to x --format gif", "invalid choice: 'gif'; use safetensors, guided-diffusion, diffusers"),
        ("new mine --images . --size 16 --budget -5min", "--budget is '-5min'; write days, hours, minutes"),
        ("new mine --images . --size 16 --gammas -0.1,0.2", "--gammas is '-0.1,0.2'; write numbers in 0..1"),
        ("plan --speed -.5", "--speed is '-.5'; write DATASET=TRAIN,SAMPLE"),
        ("", "the following arguments are required: VERB; see ipdiff --help"),
        ("prepare --dataset tiny --gama 3", "unrecognized arguments: --gama 3"),
        ("prepare", "the following arguments are required: --dataset; see ipdiff prepare --help"),
        (f"sample {RUN} --sampler ancestral-5 --index one", "'one' is no image; use a number such as 7, or FIRST-LAST"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(run: Run, tmp_path: Path, command: str, said: str) -> None:
    refused(run(*command.split()), 2, said)
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {("studies", "small"), ("work", "progress")}  # the second: what `ipdiff watch` says of it


def test_raw_data_is_not_something_to_make(run: Run) -> None:
    refused(run("prepare", "--dataset", "photos"), 2, "raw data has to be put there")


def test_a_typing_error_in_params_is_bad_input_for_every_verb(run: Run, tmp_path: Path) -> None:
    write(tmp_path, put(small(), "datasets.tiny.families.adm.training.batchsize", 3))
    said = "small/params.yaml datasets.tiny.families.adm.training.batchsize: unknown key; did you mean 'batch_size'?"
    for command in ("prepare --dataset tiny", f"train {RUN}", "grid --check", "settings --study small"):
        refused(run(*command.split()), 2, said)


def test_no_params_at_all(run: Run, tmp_path: Path) -> None:
    (tmp_path / "studies/small/params.yaml").unlink()
    refused(run("prepare", "--dataset", "tiny"), 2, "params.yaml is missing; run ipdiff in the project's root")


def artifact(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    outputs = {name: file_digest(directory / name) for name in files}
    (directory / "recipe.json").write_text(json.dumps(recipes.sealed({"outputs": outputs})))


def test_a_damaged_input_ends_with_3_and_names_the_file(run: Run) -> None:
    artifact(Path("data/tiny"), {"images.npy": b"images", "labels.npy": b"labels"})
    Path("data/tiny/labels.npy").write_bytes(b"lapels")
    done = run("classifier", "--dataset", "tiny")
    refused(done, 3, "ipdiff: data/tiny/labels.npy: expected ")
    assert "the file was changed or damaged" in done.err
    assert not Path("features").exists()


def test_a_damaged_recipe_ends_with_3(run: Run) -> None:
    artifact(Path("data/tiny"), {"images.npy": b"images", "labels.npy": b"labels"})
    Path("data/tiny/recipe.json").write_text("{")
    refused(run("classifier", "--dataset", "tiny"), 3, "data/tiny/recipe.json: expected a JSON recipe")


@pytest.mark.parametrize("index", ["64", "-1"])
def test_an_image_that_the_set_does_not_have(run: Run, index: str) -> None:
    artifact(Path("runs/tiny/adm/s0/8"), {"ema.safetensors": b"weights"})
    done = run(*f"sample {RUN} --sampler ancestral-5 --index {index}".split())
    refused(done, 2, f"index is {index}; the set has images 0..63")
    assert not Path(f"{index}.png").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere/x.png", "--out nowhere/x.png: nowhere is no directory; make it first"),
        ("params.yaml/x.png", "--out params.yaml/x.png: params.yaml is no directory; make it first"),
        ("runs", "--out runs: is a directory; name the PNG in it"),
    ],
)
def test_a_place_where_no_image_can_be_is_refused_before_it_is_drawn(run: Run, place: str, said: str) -> None:
    artifact(Path("runs/tiny/adm/s0/8"), {"ema.safetensors": b"no weights, which drawing would say"})
    refused(run(*f"sample {RUN} --sampler ancestral-5 --index 0 --out {place}".split()), 2, said)


def test_out_goes_with_index(run: Run) -> None:
    refused(run(*f"sample {RUN} --sampler ancestral-5 --out x.png".split()), 2, "--out goes with --index")


def test_the_set_of_the_exposure_test_has_another_size(run: Run) -> None:
    artifact(Path("runs/tiny/adm/s0/8"), {"ema.safetensors": b"weights"})
    artifact(Path("data/tiny"), {"images.npy": b"images"})
    done = run(*f"sample {RUN} --sampler exposure-5 --index 48".split())
    refused(done, 2, "index is 48; the set has images 0..47")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such thing"), 2, "ipdiff: no such thing\n"),
        (IntegrityError("a.npy", "1", "2"), 3, "ipdiff: a.npy: expected 1, found 2; the file was changed or damaged\n"),
        (Preempted("saved at step 3"), 75, "ipdiff: saved at step 3\n"),
    ],
)
def test_errors_have_their_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    from ipdiff.pipeline import jobs

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(jobs, "make", fail)
    done = run("prepare", "--dataset", "tiny")
    assert (done.code, done.out, done.err) == (code, "", said)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of 79.11 GiB"),
        MemoryError("Unable to allocate 3.0 TiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_is_one_line(run: Run, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("ipdiff.pipeline.jobs.make", fail)
    done = run("prepare", "--dataset", "tiny")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ipdiff: out of memory: ")
    assert done.err.count("\n") == 1
    assert "allocate" in done.err


def test_a_mistake_of_ours_is_not_dressed_up_as_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ipdiff.pipeline import jobs

    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(jobs, "make", fail)
    with pytest.raises(ZeroDivisionError):
        run("prepare", "--dataset", "tiny")


def test_a_stage_publishes_and_says_where(run: Run) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    done = run("prepare", "--dataset", "tiny")
    assert (done.code, done.out) == (0, "data/tiny\n")
    assert {path.name for path in Path("data/tiny").iterdir()} == {"images.npy", "labels.npy", "recipe.json"}
    recipe = json.loads(Path("data/tiny/recipe.json").read_text())
    assert recipe["command"] == "ipdiff prepare --dataset tiny"
    assert recipe["code"] == grid.load().cell("prepare", dataset="tiny").code
    assert recipe["params"] == {"datasets.tiny.source": small()["datasets"]["tiny"]["source"]}


def test_settings_are_written_where_dvc_looks_for_them(run: Run) -> None:
    done = run("settings", "--study", "small")
    assert (done.code, done.err) == (0, "")
    assert "settings/small/train/tiny/adm.json\n" in done.out
    written = json.loads(Path("settings/small/train/tiny/adm.json").read_text())
    assert written["code"] == grid.load().cell("train", dataset="tiny", model="adm", seed="0", step="8").code
    assert written["params"]["models.adm"] == small()["models"]["adm"]
    assert all(Path(line).is_file() for line in done.out.splitlines())


def test_grid_writes_checks_and_lists(run: Run) -> None:
    done = run("grid", "--write")
    assert done.code == 0
    assert "wrote studies/small/dvc.yaml\n" in done.out
    assert run("grid", "--write").out == ""
    assert run("grid", "--check") == Done(0, "", "")
    lines = run("grid", "--study", "small").out.splitlines()
    assert "sample@tiny-adm-s0-8-ancestral-5\tsamples/tiny/adm/s0/8/ancestral-5" in lines
    assert len(lines) == len(grid.load().study("small"))


def test_grid_names_and_removes_the_graph_of_a_study_that_is_gone(run: Run, tmp_path: Path) -> None:
    written, own = Path("studies/old/dvc.yaml"), Path("studies/mine/dvc.yaml")
    study = small() | {"datasets": {"olds": small()["datasets"]["photos"]}, "tables": {}}
    study["figures"] = {"samples": study["figures"]["samples"] | {"datasets": ["olds"]}}
    params = write(tmp_path, study, "old")
    assert run("grid", "--write").code == 0
    own.parent.mkdir()
    own.write_text("stages: {}\n")
    params.unlink()
    done = run("grid", "--check")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"ipdiff: {written}: not what params.yaml asks for; run `ipdiff grid --write`")
    assert run("grid", "--write").out == f"removed {written}: there is no such study\n"
    assert (written.exists(), own.exists()) == (False, True)
    assert run("grid", "--check") == Done(0, "", "")


def test_help_lists_every_verb(run: Run) -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    listed = {line.split()[0] for line in done.out.splitlines() if line.startswith("    ")}
    assert {*STAGES, "grid", "settings"} <= listed
    assert run("--version").out.startswith("ipdiff 0.")


def test_help_has_four_groups_and_each_verb_in_one() -> None:
    groups = list(arguments.groups())
    assert len(groups) == 4
    assert sorted(name for _, verbs, _ in groups for name, _ in verbs) == sorted({**STAGES, **VERBS})
    for _, verbs, example in groups:
        assert cli.parser().parse_args(example.split()[1:]).verb in dict(verbs)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_a_verb_says_what_it_reads_and_writes_with_examples_that_it_takes(run: Run, verb: str) -> None:
    said, _, examples = run(verb, "--help").out.partition("\nExamples:\n")
    assert re.search(r"^Reads .*\bwrites? ", said, re.MULTILINE | re.DOTALL)
    assert examples.splitlines()
    for line in examples.splitlines():
        program, *words = shlex.split(line)
        assert (program, cli.parser().parse_args(words).verb) == ("ipdiff", verb)


@pytest.mark.parametrize("verb", list(STAGES))
def test_help_of_a_stage_says_which_files_it_reads_and_writes(run: Run, verb: str) -> None:
    after = run(verb, "--help").out.partition("\nReads:\n")[2]
    reads, _, writes = after.partition("\nWrites:\n")
    assert len(reads.splitlines()) >= max(1, len(STAGES[verb].inputs))
    assert [line.rpartition("/")[2] for line in writes.splitlines()] == [*STAGES[verb].files, "recipe.json"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_a_shell_completes_verbs_options_and_files(tmp_path: Path) -> None:
    pytest.importorskip("shtab", reason="DVC brings it")
    command = [sys.executable, "-m", "shtab", "--shell", "bash", "ipdiff.cli.parser"]
    script = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (tmp_path / "weights.pt").touch()
    for words, expected in (
        ("ipdiff tra", "train"),
        ("ipdiff verify --ag", "--against"),
        ("ipdiff export --format g", "guided-diffusion"),
        ("ipdiff import wei", "weights.pt"),
    ):
        ask = f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _shtab_ipdiff; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("verb", list(STAGES))
def test_help_of_a_verb_says_what_each_name_is(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    for name in STAGES[verb].wildcards:
        assert f"--{name} " in done.out
        assert WILDCARDS[name].split()[0] in done.out


def test_what_both_engines_run_is_what_the_command_line_reads() -> None:
    from ipdiff.pipeline import jobs

    assert set(STAGES) == set(jobs.RUN)
    known = grid.load(ROOT)
    for study in known.studies.names:
        for cell in known.study(study):
            program, *argv = cell.command.split()
            args = cli.parser().parse_args(argv)
            assert program == "ipdiff"
            assert args.verb == cell.stage.verb
            assert {name: getattr(args, name) for name in cell.stage.wildcards} == {
                name: cell.bindings[name] for name in cell.stage.wildcards
            }


@pytest.mark.parametrize("module", ["ipdiff", "ipdiff.cli"])
@pytest.mark.parametrize("argv", ["", "--help", "--version", "train --help"])
def test_nothing_but_the_standard_library_is_imported_to_print_help(module: str, argv: str) -> None:
    """Torch takes a second, numpy and pydantic a tenth each, and whoever reads the help waits for them."""
    script = (
        "import sys\n"
        "known = set(sys.modules)\n"
        f"import {module}\n"
        f"argv = {argv.split()!r}\n"
        "try:\n"
        "    if argv:\n"
        "        from ipdiff.cli import main\n"
        "        main(argv)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "ours = {'ipdiff', *sys.stdlib_module_names}\n"
        "print('HEAVY', *sorted({name.partition('.')[0] for name in set(sys.modules) - known} - ours))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(
    "module", ["pipeline.grid", "pipeline.engines.sync", "report.tables.table", "report.pages.report"]
)
def test_the_graph_and_the_tables_need_no_torch(module: str) -> None:
    script = f"import sys, ipdiff.{module}; print(*sorted({{'torch', 'scipy', 'sklearn'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("place", ["work", "data"])
@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_stands_in_the_place_of_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, kind: str
) -> None:
    write(tmp_path, small())
    monkeypatch.chdir(tmp_path)
    if kind == "a file":
        Path(place).touch()
    else:
        Path(place).symlink_to("nowhere")
    assert cli.main(["prepare", "--dataset", "tiny"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ipdiff: {place}")
    assert "no file or link to a disk that is not mounted may stand in its place" in said
    assert said.count("\n") == 1
