"""What the Snakemake rules read: the grid, seen through wildcards."""

from __future__ import annotations

import atexit
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import costs
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import fork_server, imports, settings, snakemake_records, sync
from ipdiff.pipeline.grid import checks, selection
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store import artifact
from ipdiff.spec import RunSpec
from ipdiff.work import launch, locks

_T = TypeVar("_T")
MEASURED = ("train", "sample", "evaluate")
"""Verbs whose jobs Snakemake can measure; a directive cannot be left out at will, so their rules have none."""
SHOWN = {
    "table": {"table.csv": "Tables"},
    "figure": {"figure.png": "Figures"},
    "report": {"index.html": "Page", "cards.html": "Page"},
}
"""What stands in Snakemake's report of a verb's files, and under which heading."""

LIBRARIES_MB = 4000
"""Memory of a process that runs a network before there is one: Python, torch, the driver of a GPU."""
UNKNOWN_MB = 12000
"""What a network takes of whose size there is no formula (`ipdiff.nets.costs`)."""


class Workflow:
    """The grid for Snakemake. Bad input ends Snakemake with one line and exit code 2.

    Only the studies that are asked for are read: what is wrong with another one stops nothing.
    """

    def __init__(self, snakemake: Any, given: Mapping[str, Any], shipped: Callable[[], str]) -> None:
        """Find the studies.

        Args:
            snakemake: the Workflow of Snakemake.
            given: Snakemake's configuration: `--config`, `--configfile`, config/config.yaml, or a module's `config`.
            shipped: the path of the params.yaml that came with the Snakefile, which may have to be fetched.
        """
        _or_exit(lambda: _check_use(snakemake))
        self._benchmarked = _or_exit(lambda: settings.read(given, shipped))
        self.grid = grid.load()
        self._cell = cache(self._named)
        self.studies: list[str] = _or_exit(lambda: self.grid.studies.names)

    @property
    def trained(self) -> str:
        """Pattern of the runs that are trained, from the data set on: nothing makes imported checkpoints."""
        imported = "|".join(map("/".join, self.grid.studies.imported()))
        return rf"(?!(?:{imported})/)[^/]+" if imported else "[^/]+"

    def targets(self, study: str) -> Callable[[Any], list[str]]:
        """Snakemake's input function of the files that stand for a study."""

        def files() -> list[str]:
            checks.require(self.grid, [study])
            imports.require(self.grid, self.grid.imports(study))
            return self.grid.targets(study)

        return lambda wildcards: _or_exit(files)

    def inputs(self, verb: str) -> Callable[[Any], list[str]]:
        """Snakemake's input function of a verb; nothing makes an imported checkpoint that is not here."""

        def files(cell: grid.Cell) -> list[str]:
            imports.require_inputs(self.grid, cell)
            return list(cell.inputs)

        return self._asked(verb, files)

    def outputs(self, verb: str, caption: str | None = None) -> dict[str, Any]:
        """Named outputs of a verb, with wildcards: {images_npy: data/{dataset}/images.npy, recipe_json: ...}.

        Args:
            verb: the verb.
            caption: what `snakemake --report` says of the files that it shows of this verb (`SHOWN`): a path from the
                rule's file. None: it shows none.
        """
        found = {path.rpartition("/")[2]: path for path in STAGES[verb].outputs}
        marked = {name: self._shown(verb, name, found[name], caption) for name in SHOWN[verb]} if caption else {}
        return {name.replace(".", "_"): path for name, path in {**found, **marked}.items()}

    def _shown(self, verb: str, name: str, path: str, caption: str) -> Any:
        """An output that stands in Snakemake's report, under the title that the study gives it."""
        from snakemake.io import report

        def labels(wildcards: Any) -> dict[str, str]:
            study = self.grid.studies.load(wildcards.study)
            if verb == "report":
                return {"study": study.study, "page": name, "title": study.title}
            view = getattr(wildcards, verb)
            found = study.table(view) if verb == "table" else study.figure(view)
            return {"study": study.study, verb: view, "title": found.title}

        return report(path, caption=caption, category=SHOWN[verb][name], labels=labels)

    def measure(self, rules: Any) -> None:
        """Give `MEASURED` a `benchmark:`, which writes a job's time and memory beside its log, if that is asked for.

        Snakemake sees the processes that it starts and their children, so no job is handed to another process then.
        """
        if self._benchmarked:
            os.environ[fork_server.VARIABLE] = ""
            for verb in MEASURED:
                rule = getattr(rules, verb).rule
                rule.benchmark_modifier = rule.workflow.modifier.path_modifier
                rule.benchmark = snakemake_records.benchmark_of(verb)

    def params(self, verb: str) -> Callable[[Any], str]:
        """Snakemake's params function of a verb: what decides a cell besides files and code, as JSON."""
        return self._asked(verb, lambda cell: snakemake_records.params_text(cell, self.grid))

    def _asked(self, verb: str, ask: Callable[[grid.Cell], _T]) -> Callable[[Any], _T]:
        """A function of Snakemake's wildcards: what is asked of the cell that they name."""

        def answer(wildcards: Any) -> _T:
            return ask(self._cell(verb, *(str(getattr(wildcards, name)) for name in STAGES[verb].wildcards)))

        return lambda wildcards: _or_exit(lambda: answer(wildcards))

    def _named(self, verb: str, *names: str) -> grid.Cell:
        """The cell of these wildcards; Snakemake asks for it once for each of its functions."""
        found = self.grid.cell(verb, **dict(zip(STAGES[verb].wildcards, names, strict=True)))
        checks.require_labels(self.grid, found)
        return found

    def code(self, verb: str) -> Callable[[Any], str]:
        """Snakemake's params function of a verb: the digest of a cell's code, whose change makes the cell stale."""
        return self._asked(verb, lambda cell: cell.code)

    def log(self, verb: str) -> str:
        """Where a job's messages go."""
        return STAGES[verb].log

    def command(self, verb: str) -> str:
        """The shell command of a verb."""
        return snakemake_records.shell_command(verb)

    def threads(self, verb: str) -> Callable[[Any], int]:
        """CPU cores of a job that runs a network: the threads it computes with, in each of its processes."""
        processes = _or_exit(lambda: launch.wanted(shared=STAGES[verb].shared))
        return self._asked(verb, lambda cell: processes * self._compute(cell).threads)

    def gpus(self, verb: str) -> Callable[[Any], int]:
        """GPUs of a job that runs a network: one for each of its processes, or none."""
        processes = _or_exit(lambda: launch.wanted(shared=STAGES[verb].shared))
        return self._asked(verb, lambda cell: processes if self._compute(cell).device == "cuda" else 0)

    def _compute(self, cell: grid.Cell) -> Compute:
        return self.grid.of(cell).dataset(cell.bindings["dataset"]).compute

    def attempt(self, wildcards: Any, attempt: int) -> int:
        """Snakemake's resource function of every rule: which attempt a job is, for `engines.failures`."""
        return attempt

    def memory(self, verb: str) -> Callable[[Any, int], int]:
        """MB of a job that runs a network: what its processes need, up to three times that where it fails."""
        processes = _or_exit(lambda: launch.wanted(shared=STAGES[verb].shared))

        def needed(wildcards: Any) -> int:
            params = self.grid.studies.owner(wildcards.dataset)
            spec = params.run_spec(wildcards.dataset, wildcards.model, int(wildcards.seed))
            return processes * memory_mb(spec, trains=verb in ("train", "resume"))

        return lambda wildcards, attempt: _or_exit(lambda: needed(wildcards)) * min(attempt, 3)

    def prepare(self) -> None:
        """What a Snakemake does that is no job of another one, before it looks at anything.

        A lock that a killed Snakemake left is taken off; one that is held is left for Snakemake to respect. What
        `dvc repro`, `dvc pull` or a clone brought is accepted, before Snakemake looks at times.
        """
        _or_exit(_join)
        if (why := sync.obstacle()) is not None:
            print(f"ipdiff: what is made will not be recorded: {why}", file=sys.stderr)
        _or_exit(sync.adopt)

    def record_at_exit(self, snakemake: Any) -> None:
        """Record what an earlier run could not, even if this one finds nothing to do (it calls no onsuccess then)."""

        def record() -> None:
            if snakemake.executor_plugin is not None and not snakemake.dryrun and sync.unrecorded():
                subprocess.run(["ipdiff", "sync", "--record-only"], check=False)

        atexit.register(record)

    def explain_at_exit(self, snakemake: Any) -> None:
        """Say what else could have been meant by a target that no rule makes: Snakemake names it alone."""

        def explain() -> None:
            rules = {rule.name: rule for rule in snakemake.rules}
            for target in snakemake.dag_settings.targets if snakemake.dag_settings is not None else ():
                made = target in rules or any(rule.is_producer(target) for rule in rules.values())
                if not (made or os.path.exists(target)):
                    print(f"ipdiff: {_hint(self.grid, rules, target)}", file=sys.stderr)

        atexit.register(explain)


def _check_use(snakemake: Any) -> None:
    """Refuse what would be ignored: paths with a prefix, and an environment without ipdiff."""
    modifier, deployment = snakemake.modifier.path_modifier, snakemake.deployment_settings
    if modifier.prefix is not None or modifier.modifies_prefixes:
        raise UserError(
            "as a module, ipdiff cannot be given `prefix:` or `replace_prefix:`: its commands know their paths; leave "
            "it out, rules may have other names (`use rule * from ipdiff as ipdiff_*`)"
        )
    if deployment is not None and deployment.deployment_method and not Path("ipdiff/__init__.py").exists():
        raise UserError(
            "--software-deployment-method needs a checkout of the project, from which jobs take ipdiff itself; leave "
            "it out, so that jobs run in the environment of Snakemake"
        )


def _hint(known: grid.Grid, rules: Iterable[str], target: str) -> str:
    """A line about a target that no rule makes."""
    if target in known.studies.names:  # a module's rules may have other names
        return f"the study '{target}' has another rule's name here: {', '.join(n for n in rules if n.endswith(target))}"
    try:
        *_, last = selection.select(known, [target]).values()
    except UserError as error:
        return str(error)
    return f"Snakemake is asked for studies and files, not for '{target}'; a file of it is {last.outputs[0]}"


def memory_mb(spec: RunSpec, *, trains: bool) -> int:
    """Memory on the host of one process that trains a run or draws from it, in MB, by its network's parameters.

    Where it trains, weights, EMA, gradients and two moments of Adam: on the CPU for as long as it runs, with what a
    backward pass keeps; of a GPU's while a state that other processes wait for is read.
    """
    if (cost := costs.walked(spec)) is None:
        return LIBRARIES_MB + UNKNOWN_MB
    numbers = cost.parameters * (5 if trains else 2)  # drawing: the file and the network made of it
    kept = 0
    if spec.compute.device == "cpu" and trains:
        images = spec.training.micro_batch or spec.training.batch_size
        kept = images * cost.bytes_an_image(spec.compute.precision, everything=True)
    return LIBRARIES_MB + math.ceil((numbers * 4 + kept) / 1e6)


def _join() -> None:
    lock = artifact.LOCKS / "snakemake.lock"
    try:
        locks.join(lock, _unlock)
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written: {error.strerror}; use a copy of the project that you may write"
        ) from None


def _unlock() -> None:
    if snakemake_records.unlock():
        print(
            "ipdiff: took off the lock of a Snakemake that was killed here; no other one is running",
            file=sys.stderr,
        )


def _or_exit(function: Callable[[], _T]) -> _T:
    """Call a function; bad input ends Snakemake with one line and exit code 2."""
    try:
        return function()
    except UserError as error:
        print(f"ipdiff: {error}", file=sys.stderr)
        raise SystemExit(2) from None
