"""The page of the command line, docs/command-line.md, as the parsers have it.

`python docs/command_line.py --write` writes it, `--check` exits with 2 where it is stale.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ipdiff import cli
from ipdiff.cli import arguments

PAGE = Path(__file__).with_name("command-line.md")
HEAD = """# Command line

Written by `python docs/command_line.py --write` from the parsers; do not edit.

Results go to stdout, progress and messages to stderr. Where a command is wrong, one line says what was found, what was
expected and what to do.

| exit code | means |
|---|---|
| 0 | done |
| 2 | bad input, or something is lacking |
| 3 | integrity: bytes are not those that were recorded |
| 75 | stopped by a signal with its progress saved: run it again |
| 130 | Ctrl-C |

Completion in bash is one line, which may stand in `~/.bashrc` (zsh and tcsh: `--shell zsh`, `--shell tcsh`):

```sh
eval "$(shtab --shell bash ipdiff.cli.parser)"
```
"""


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the verbs."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def spelt(action: argparse.Action) -> str:
    """An argument as it is typed."""
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = "" if action.nargs == 0 else f"{{{','.join(map(str, action.choices))}}}" if action.choices else name
    if not action.option_strings:
        return {"?": f"[{value}]", "*": f"[{value} ...]", argparse.REMAINDER: f"{value} ..."}.get(
            str(action.nargs), value
        )
    return " ".join([", ".join(action.option_strings), value]).strip()


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|")


def of_verb(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines about a verb."""
    yield f"\n### {name}\n\n{(parser.description or '').capitalize()[:1]}{(parser.description or '')[1:]}.\n"
    actions = [action for action in parser._actions if "--help" not in action.option_strings]
    if actions := [action for action in actions if action.help != argparse.SUPPRESS]:
        yield "| argument | meaning |\n|---|---|"
        for action in actions:
            needed = " (required)" if action.required and action.option_strings else ""
            yield f"| `{cell(spelt(action))}` | {cell(action.help or '')}{needed} |"
        yield ""
    said, _, examples = (parser.epilog or "").partition("\n\nExamples:\n")
    if examples:
        lines = ", ".join(f"`{line.strip()}`" for line in examples.splitlines())
        yield f"{' '.join(said.split())} For example {lines}."
        return
    for part in re.split(r"\n(?=\S)", said):  # a title, and lines that are indented
        title, *rows = part.splitlines()
        yield f"{title} {', '.join(f'`{row.strip()}`' if ' ' not in row.strip() else row.strip() for row in rows)}.\n"


def page() -> str:
    """The whole page."""
    verbs, lines = subparsers(cli.parser()), [HEAD]
    for title, members, _ in arguments.groups():
        lines.append(f"## {title}")
        for name, _ in members:
            lines += of_verb(name, verbs[name])
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", action="store_true")
    way.add_argument("--check", action="store_true")
    args, text = parser.parse_args(), page()
    fresh = PAGE.exists() and PAGE.read_text() == text
    if args.write:
        PAGE.write_text(text)
        print("nothing to write" if fresh else f"wrote docs/{PAGE.name}")
        return 0
    if not fresh:
        print(f"docs/{PAGE.name}: not what the parsers say; run `python docs/command_line.py --write`", file=sys.stderr)
    return 0 if fresh else 2


if __name__ == "__main__":
    raise SystemExit(main())
