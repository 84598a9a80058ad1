"""The parser of the command line, and what it says: help in four groups, and one line where something is mistyped."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ipdiff import __version__
from ipdiff.cli import engines, exchange, stages, store, study
from ipdiff.cli.verbs import VERBS, Work
from ipdiff.pipeline.stages import STAGES, WILDCARDS, Stage

GROUPS = (
    (
        "A study: write it, plan it, watch it",
        (study,),
        "ipdiff new photos --images my-photos.zip --size 32 --budget 2h",
    ),
    ("Stages: each makes one artifact, and both engines run them", (stages,), "ipdiff prepare --dataset digits"),
    ("Artifacts: checked, brought, published, recorded", (store, engines), "ipdiff pull tables/digits/table3"),
    ("Checkpoints of other code: in and out", (exchange,), "ipdiff import ADM_IP_015.pt --as cifar10/adm-ip-official"),
)
"""What the help calls a group, the modules whose verbs are in it, and an example."""
CODES = "Exit codes: 0 done, 2 bad input, 3 integrity, 75 preempted (run me again), 130 Ctrl-C."
MORE = "`ipdiff VERB --help` says what a verb takes, reads and writes."
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""What shtab is told of an argument that is a file."""


class _Parser(argparse.ArgumentParser):
    """Argument errors as one line; what begins with a minus and a digit is a value, never an option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{'' if message.endswith('?') else f'; see {self.prog} --help'}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, but an unknown option is said by the verb, with the one that may have been meant."""
        known, rest = super().parse_known_args(args, namespace)
        if rest and hasattr(known, "work"):
            option = rest[0].partition("=")[0].removeprefix("--")
            near = _nearest(option, [name.removeprefix("--") for name in self._option_string_actions])
            self.error(f"unrecognized arguments: {' '.join(rest)}" + near.replace("'", "'--", 1))
        return known, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            known = "" if action.dest == "verb" else f"; use {', '.join(names)}"
            raise argparse.ArgumentError(action, f"invalid choice: '{value}'{_nearest(str(value), names) or known}")


class _Top(_Parser):
    """The parser of all verbs."""

    def format_help(self) -> str:
        """The verbs by groups."""
        lines = [self.format_usage(), "Input perturbation for diffusion models, as a reproducible pipeline.", ""]
        for title, verbs, example in groups():
            lines += [title, *(f"    {name:<12}{text}" for name, text in verbs), f"  e.g. {example}", ""]
        return "\n".join([*lines, MORE, CODES, ""])


def _nearest(name: str, known: list[str]) -> str:
    from ipdiff.pipeline.config import nearest  # imports what whoever types no mistake need not wait for

    return nearest(name, known)


def groups() -> Iterator[tuple[str, list[tuple[str, str]], str]]:
    """The groups of the help: title, verbs with what they do, an example."""
    for title, modules, example in GROUPS:
        names = {module.__name__ for module in modules}
        verbs = [(name, text) for name, (text, _, work) in VERBS.items() if work.__module__ in names]
        verbs += [(name, stage.help) for name, stage in STAGES.items()] if stages in modules else []
        yield title, verbs, example


def of_stage(stage: Stage) -> str:
    """What a stage reads and writes; the names that fill its templates are in capitals."""

    def spelt(*templates: str) -> list[str]:
        return [re.sub(r"{(\w+)}", lambda name: name[1].upper(), text) for text in templates]

    inputs = spelt(*stage.inputs)
    if not inputs:
        inputs = ["what params.yaml names for it" if "study" in stage.wildcards else "the data set's raw files"]
    parts = {"Reads": inputs, "Keys of params.yaml": spelt(*stage.params), "Writes": spelt(*stage.outputs)}
    return "\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in parts.items() if lines)


def of_verb(work: Work) -> str:
    """What another verb reads and writes, and examples: its function's docstring, the last paragraph one a line."""
    text, _, examples = (inspect.getdoc(work) or "").rpartition("\n\n")
    return "\n  ".join([f"{text}\n\nExamples:", *examples.splitlines()])


def parser(main: Callable[..., int]) -> argparse.ArgumentParser:
    """The command line, whose verbs are run by `main`."""
    top = _Top(prog="ipdiff")
    top.set_defaults(main=main)  # what a server of commands runs
    top.add_argument("--version", action="version", version=f"ipdiff {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for verb, stage in STAGES.items():
        sub = verbs.add_parser(verb, help=stage.help, description=stage.help, epilog=of_stage(stage))
        for name in stage.wildcards:
            sub.add_argument(f"--{name}", required=verb not in stages.OPTIONAL, help=WILDCARDS[name])
        sub.set_defaults(work=stages.make)
        if verb == "evaluate":
            stages.add_files(sub)
        if verb == "sample":
            text = "draw only this image of the set (7), or these (0-63, 8 a line), as a PNG"
            sub.add_argument("--index", type=stages.images, help=text)
            sub.add_argument("--out", type=Path, help="where --index writes its PNG")
        if verb == "report":
            text = "instead: a page of the study's numbers at this git revision, now, and their differences"
            sub.add_argument("--against", metavar="REV", help=text)
    for verb, (text, arguments, work) in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text, epilog=of_verb(work))
        for name, options in arguments:
            sub.add_argument(name, **options)
        sub.set_defaults(work=work)
    for sub in verbs.choices.values():
        for action in sub._actions:
            if action.type is Path:
                action.complete = FILES  # type: ignore[attr-defined]
    return top
