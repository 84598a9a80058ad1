"""Every command and every Python example of the documents does what it says, or at least could.

Each command is resolved, here and now: its program's own parser takes it, and the cells, files, targets and keys that
it names exist. A line of `RULES` says where it is run besides; a command that no line fits fails. What runs on the
digits study needs a finished one (`make demo`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dvc.cli.parser
import pytest
import snakemake.cli
import torch
import yaml
from workflow.conftest import ROOT, make_project, publish
from workflow.engines import environment, run, stale

from ipdiff import cli
from ipdiff.interop import checking
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.planning import plan
from ipdiff.pipeline.grid import selection
from ipdiff.pipeline.stages import STAGES

pytestmark = pytest.mark.workflow

DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "config/README.md")
    if path.name != "extending.md"  # test_extending.py runs it
]
PROGRAMS = ("ipdiff", "snakemake", "dvc", "make", "python -m")
COMMANDS = ("", "sh", "bash", "console")
"""Languages of fences that hold commands, a line each."""
VARIABLE = re.compile("[A-Z_]+=")
GRID = grid.load(ROOT)

PLACEHOLDERS = {
    "--remote NAME": "--remote store",
    "--study NAME": "--study digits",
    "--to PATH": "--to work/exported",
    "publish STUDY": "publish digits",
    "watch STUDY": "watch digits",
}
"""What a reader has to fill in, and what is filled in here."""


# Where a command is run: a project of its own each time


@dataclass(frozen=True)
class Rule:
    """What is done with commands that begin so.

    Attributes:
        start: the first words.
        where: fixture of a project to run it in; None: it is resolved only, and `why` says why.
        codes: exit codes that are right there.
        dry: whether it is planned in a project without data as well (DVC's own dry run needs the data).
        replaced: a stand-in for what the command names, e.g. a data set that fits a test.
    """

    start: str
    where: str | None
    why: str = ""
    codes: tuple[int, ...] = (0,)
    dry: bool = False
    replaced: tuple[tuple[str, str], ...] = ()


MINI = (("cifar10", "digits_mini"),)
RULES = [
    *(
        Rule(start, None, "another program")
        for start in ("cat", "cd", "eval", "git clone", "mkdir", "pip", "sbatch", "sha256sum", "source")
    ),
    Rule("make", None, "it installs, and runs for minutes"),
    Rule("python -m benchmarks", None, "minutes"),
    Rule("python examples/train_your_own.py", None, "a minute; test_examples.py runs it for fewer updates"),
    Rule("jupyter execute examples/", None, "minutes; test_examples.py runs it"),
    Rule("snakemake --profile", None, "it needs a cluster; test_profiles.py has a stand-in for one"),
    Rule("snakemake tables/paper/", None, "days on a GPU", dry=True),
    Rule("snakemake --report", "digits"),
    Rule(
        "snakemake --cores all tables/official/", None, "it needs the authors' files; test_official.py has their like"
    ),
    Rule("snakemake", "digits", dry=True),
    Rule("dvc repro studies/mini/dvc.yaml", "mini"),
    Rule("dvc repro", "digits"),
    *(
        Rule(start, None, "of an experiment; test_dvc_views.py runs it")
        for start in ("dvc exp branch", "git restore", "dvc checkout")
    ),
    Rule("dvc exp", "mini"),
    Rule("dvc dag", "mini"),
    Rule("dvc metrics show", "mini"),
    Rule("ipdiff bench --dataset", None, "minutes on a CPU; test_bench.py measures a small network"),
    Rule("ipdiff doctor", "project", codes=(0, 2)),  # 2: what it asks for is lacking here
    Rule("ipdiff evaluate samples/ --reference photos/", None, "the reader's images; test_library.py has some"),
    Rule("ipdiff export cifar10/", "mini", replaced=MINI),
    Rule("ipdiff grid", "project"),
    Rule("ipdiff import ADM_IP_015.pt", None, "the authors' file; test_official.py imports its like"),
    Rule("ipdiff import", "mini", replaced=MINI),
    Rule("ipdiff new", None, "minutes, on pictures of the reader's; test_new.py runs it"),
    Rule("ipdiff plan", "project"),
    Rule("ipdiff pull", "digits_clone"),
    Rule("ipdiff", "digits"),
]


# The documents


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    document: str
    text: str
    fenced: bool

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"

    @property
    def rule(self) -> Rule:
        """The first line of `RULES` that fits."""
        for rule in RULES:
            if f"{shlex.join(self.words)} ".startswith(rule.start if rule.start.endswith("/") else f"{rule.start} "):
                return rule
        raise AssertionError(f"{self}: say in RULES whether it is run or resolved only")

    @property
    def all_words(self) -> list[str]:
        """Its words, placeholders filled in."""
        text = self.text
        for place, filled in PLACEHOLDERS.items():
            text = text.replace(place, filled)
        return shlex.split(text)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that it begins with."""
        return dict(word.split("=", 1) for word in itertools.takewhile(VARIABLE.match, self.all_words))

    @property
    def words(self) -> list[str]:
        """The words after those."""
        return list(itertools.dropwhile(VARIABLE.match, self.all_words))


def fences(path: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a document: their language and text."""
    for _, language, text in re.findall(
        r"^( *)```(.*?)\n(.*?)^\1```", path.read_text(), flags=re.MULTILINE | re.DOTALL
    ):
        yield language.strip(), text


def fenced_commands(text: str) -> list[str]:
    """A block's commands, without prompts and comments; lines that go on are one."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [command for line in lines if (command := shlex.join(shlex.split(line.removeprefix("$ "), comments=True)))]


def inline_commands(text: str) -> list[str]:
    """The commands of running text and tables: what is in backquotes, begins with a program and says more."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [span for span in spans if re.match(rf"([A-Z_]+=\S+ )*({'|'.join(PROGRAMS)}) ", span)]


def commands() -> list[Command]:
    """All commands of all documents, each once a document."""
    found = {}
    for path in DOCUMENTS:
        name = str(path.relative_to(ROOT))
        for language, text in fences(path):
            if language in COMMANDS:
                found |= {Command(name, command, True): None for command in fenced_commands(text)}
        found |= {Command(name, command, False): None for command in inline_commands(path.read_text())}
    return list(found)


ALL = commands()
FENCED = [command for command in ALL if command.fenced]
EXAMPLES = [text for path in DOCUMENTS for language, text in fences(path) if language == "python"]


def test_every_fence_is_of_a_kind_that_is_checked() -> None:
    assert {language for path in DOCUMENTS for language, _ in fences(path)} <= {*COMMANDS, "python", "yaml", "text"}
    assert FENCED
    assert EXAMPLES


def test_a_command_that_nobody_has_thought_of_is_refused() -> None:
    with pytest.raises(AssertionError, match="say in RULES"):
        _ = Command("README.md", "curl https://example.org/install.sh", True).rule


# Resolving: the program's parser takes the words, and what they name exists


def resolve(command: Command) -> None:
    """Fail where the command names an option, verb, cell, target, file or key that there is none of."""
    program, *words = command.words
    if not command.fenced and program in ("ipdiff", "dvc"):
        if words[-1] == "..." or all(word.isalpha() for word in words):  # a verb is named, and not all that it needs
            words = [*words[:-1], "--help"] if words[-1] == "..." else [*words, "--help"]
    if program in RESOLVED:  # others are not this project's
        RESOLVED[program](words)


def of_make(words: list[str]) -> None:
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {word for word in words if "=" not in word}
    assert asked <= known, f"the Makefile has no {asked - known}"


def of_snakemake(words: list[str]) -> None:
    if words[0] == "--cluster":
        return  # the documents say that it is gone
    args = snakemake.cli.parse_args(words)[1]
    for profile in args.profile if isinstance(args.profile, list) else [args.profile] if args.profile else []:
        assert (ROOT / profile).is_dir(), f"no profile {profile}"
    for target in args.targets:
        assert target in GRID.studies.names or GRID.maker(target), f"nothing makes {target}"


def of_dvc(words: list[str]) -> None:
    args = parsed(dvc.cli.parser.get_main_parser(), words)
    for target in getattr(args, "targets", None) or []:
        assert (ROOT / target).exists() or GRID.maker(target), f"no file {target}"
    for setting in getattr(args, "set_param", None) or []:
        file, colon, keys = setting.partition("=")[0].rpartition(":")
        at = yaml.safe_load((ROOT / (file if colon else "params.yaml")).read_text())
        for key in keys.split("."):
            assert key in at, f"{file} has no {setting}"
            at = at[key]


def of_ipdiff(words: list[str]) -> None:
    args = parsed(cli.parser(), words)
    if hasattr(args, "verb"):
        names_exist(args)


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """What a parser makes of the words; nothing where they ask for help."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return parser.parse_args(words)
        except SystemExit as ended:
            if ended.code == 0:
                return argparse.Namespace()
            raise


def names_exist(args: argparse.Namespace) -> None:
    """What the arguments of ipdiff name is in params.yaml; UserError says what is not."""
    studies, named = GRID.studies, vars(args)
    names = {
        name: named[name]
        for name in (STAGES[args.verb].wildcards if args.verb in STAGES else ())
        if named[name] is not None
    }
    if names:
        GRID.cell(args.verb, **names)
    elif args.verb == "bench":
        studies.dataset(args.dataset)
    elif args.verb == "import":
        settings = studies.dataset(args.run.partition("/")[0])
        assert args.step is None or args.step in settings.checkpoints, f"no checkpoint {args.step}"
    elif args.verb == "export":
        parts = args.source.removeprefix("runs/").split("/")
        studies.owner(parts[0]).model(parts[1])
    elif named.get("study") is not None:
        studies.load(args.study)
    if args.verb in ("plan", "pull", "verify"):
        selection.select(GRID, args.targets)
    if named.get("speed"):
        studies.dataset(plan.Speed.parse(args.speed).dataset)


def of_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"no module {words[1]}"
    else:
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"


RESOLVED = {
    "ipdiff": of_ipdiff,
    "snakemake": of_snakemake,
    "dvc": of_dvc,
    "make": of_make,
    "python": of_python,
}


@pytest.mark.parametrize("command", ALL, ids=str)
def test_a_command_resolves(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if command.fenced:
        assert command.rule
    resolve(command)


@pytest.mark.parametrize(
    "text",
    [
        "ipdiff train --dataset digits --model adm-ip --seed 0 --step 2000",
        "ipdiff pull runs/digits/adm-ip/s0/2000",
        "ipdiff plan paper --sped cifar10=1,2",
        "ipdiff plan paper --speed cifar=1,2",
        "ipdiff verify --study digit",
        "ipdiff import x.pt --as cifar10/official --step 1",
        "ipdiff export cifar10/adm-ipp --format diffusers --to x",
        "snakemake tables/digits/table9/table.csv",
        "snakemake --profile profiles/slrm paper",
        "snakemake --coars 2",
        "dvc repro studies/minni/dvc.yaml",
        "dvc exp rn",
        "dvc exp run studies/mini/dvc.yaml -S studies/mini/params.yaml:datasets.digits_mini.strengths.gama=0.3",
        "make tests",
        "python -m benchmark",
    ],
)
def test_a_command_that_is_wrong_does_not(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        resolve(Command("README.md", text, True))


# Running


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without data. To be read only."""
    return make_project(tmp_path_factory.mktemp("bare"))


@pytest.mark.parametrize("command", [one for one in FENCED if one.rule.dry], ids=str)
def test_a_dry_run_of_it_plans(command: Command, bare: Path) -> None:
    run(bare, *command.words, "--dry-run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits study of this checkout, committed in a project of its own. To be read only."""
    cells = GRID.study("digits")
    if not all((ROOT / path).exists() for cell in cells for path in cell.outputs):
        pytest.skip("the digits study has not been run here; `make demo` runs it")
    project = make_project(tmp_path_factory.mktemp("finished"))
    for name in sorted({path.split("/")[0] for cell in cells for path in cell.outputs} | {"settings", "receipts"}):
        shutil.copytree(ROOT / name, project / name, symlinks=True)
    for name in (".dvc/cache", ".snakemake/metadata"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, dirs_exist_ok=True)
    shutil.copy2(ROOT / "dvc.lock", project)
    run(project, "git", "add", "dvc.lock")
    run(project, "git", "commit", "--quiet", "-m", "the digits study")
    if stale(project, "digits"):
        pytest.skip(
            "the digits study that is here is of an earlier state of the code; `make demo` brings it up to date"
        )
    return project


@pytest.fixture
def digits(finished: Path, tmp_path: Path) -> Path:
    """The finished study, to change it: artifacts, which are replaced and never changed, are hard links."""
    whole = {"dvc.lock", "dvc.yaml", "params.yaml", "studies", ".git"}

    def copied(source: str, target: str) -> object:
        part = Path(source).relative_to(finished).parts[0]
        return (shutil.copy2 if part in whole else os.link)(source, target)

    return Path(shutil.copytree(finished, tmp_path / "digits", symlinks=True, copy_function=copied))


@pytest.fixture(scope="module")
def published(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished study with what it made pushed to its default remote, `store`. To be read only."""
    folder = tmp_path_factory.mktemp("published")
    publish(finished, folder, "dvc.lock")
    return folder / "origin"


@pytest.fixture
def digits_clone(published: Path, tmp_path: Path) -> Path:
    """A clone of the published digits study, without data."""
    run(tmp_path, "git", "clone", "--quiet", str(published), "digits")
    return tmp_path / "digits"


@pytest.fixture
def mini(clone: Path) -> Path:
    """The mini study in a clone, with its data."""
    run(clone, "ipdiff", "pull", "mini")
    return clone


def give_checkpoint(project: Path, words: list[str]) -> None:
    """Write the file that `ipdiff import` is to read, and declare the model that it becomes, as README says."""
    args = cli.parser().parse_args(words[1:])
    dataset, model = args.run.split("/")
    params = project / config.path_of(GRID.studies.owner(dataset).study)
    raw = yaml.safe_load(params.read_text())
    raw["models"][model] = {"family": "adm", "gamma": 0.15, "imported": True}
    params.write_text(yaml.safe_dump(raw, sort_keys=False))
    shapes = checking.shapes(config.load(params).run_spec(dataset, model, 0))
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, project / args.file)


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in FENCED if one.rule.where], ids=str)
def test_a_command_runs(command: Command, request: pytest.FixtureRequest) -> None:
    words = command.words
    for old, new in command.rule.replaced:
        words = [word.replace(old, new) for word in words]
    project = request.getfixturevalue(command.rule.where)
    (project / "work").mkdir(exist_ok=True)
    if words[:2] == ["ipdiff", "import"]:
        give_checkpoint(project, words)
    done = subprocess.run(
        words, cwd=project, env=environment(project) | command.variables, capture_output=True, text=True
    )
    assert done.returncode in command.rule.codes, (
        f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    assert "Traceback" not in done.stderr


# Python


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_a_python_example_runs(text: str) -> None:
    """With what a reader has: a network, images and noise of his own."""
    noise = torch.Generator().manual_seed(0)
    x0, eps, xi = (torch.randn(2, 3, 8, 8, generator=noise) for _ in range(3))
    reader: dict[str, object] = {"net": lambda x, t: x, "x0": x0, "eps": eps, "xi": xi, "t": torch.tensor([3, 7])}
    exec(compile(text, "example", "exec"), reader)
    made = [reader[name] for name in ("loss", "images") if name in reader]
    assert made
    assert all(torch.isfinite(torch.as_tensor(one)).all() for one in made)
