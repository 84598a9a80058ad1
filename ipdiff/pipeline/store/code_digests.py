"""A digest of the code behind a cell: all that its stage's module reaches, comments and layout left out.

Most modules are counted whole, with all they import. Of a module of records and registries only the definitions that
are named count, with what those name in turn; and of a registry (a table in which a new thing is one row) only the row
that a cell names, with what that row reaches where the stage runs it. So a new sampler, metric or reader makes no
existing artifact stale.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2]

PLUMBING = {"ipdiff.errors", "ipdiff.work.files", "ipdiff.work.locks", "ipdiff.work.signals", "ipdiff.work.spec"}
"""Imported by stages but deciding no byte."""

BY_DEFINITION = re.compile(r"ipdiff(\.\w+)*\.(spec|parameters|samplers|diffusion)")
"""Modules of which only the definitions count that are named: records, registries, samplers, objectives."""

UNCOUNTED = {"FORBID"}
"""Definitions of these modules that decide no byte."""

DATA = {
    "ipdiff.report.paper": ("report/paper_values.yaml",),
    "ipdiff.report.pages.page": tuple(f"report/pages/templates/*.{kind}" for kind in ("jinja", "css", "js")),
}
"""Modules that read files of the package: their names and bytes count as the module's code."""

FUNCTION = re.compile(r"(ipdiff(?:\.\w+)+):(\w+)")
"""How a row of a registry names a function that is imported when it is needed."""

Rows = tuple[tuple[str, tuple[str, ...]], ...]
"""Registry (its module and name, dotted) and the keys of its rows that count; a registry not named counts whole."""


def module_file(module: str) -> Path | None:
    """The source file of a module of this package, or None."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def code_files(module: str, rows: Rows = (), runs: tuple[str, ...] = ()) -> list[Path]:
    """Every file whose edit may change a code digest; arguments as for that."""
    reached = _reached(module, rows, runs)
    partly = {module for module, _ in reached.definitions}
    return [*(_path(module) for module in sorted(reached.modules | partly)), *_data_files(reached.modules)]


@lru_cache(maxsize=4096)
def code_digest(module: str, rows: Rows = (), runs: tuple[str, ...] = ()) -> str:
    """md5 over the syntax trees of what a stage reaches; the same on every Python from 3.11.

    Args:
        module: the stage's.
        rows: of the registries, those that the cell names.
        runs: registries whose rows name functions that the stage runs.
    """
    digest = hashlib.md5(usedforsecurity=False)
    reached = _reached(module, rows, runs)
    for module in sorted(reached.modules):
        digest.update(f"{module}\n{_text(_path(module).read_bytes())}\n".encode())
    for path in _data_files(reached.modules):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    for (module, name), nodes in sorted(reached.definitions.items()):
        for node in nodes:
            digest.update(f"{module}.{name}\n{_text_of(node)}\n".encode())
    return digest.hexdigest()


def _data_files(modules: Iterable[str]) -> list[Path]:
    patterns = [pattern for module in sorted(modules) for pattern in DATA.get(module, ())]
    return [path for pattern in patterns for path in sorted(PACKAGE.glob(pattern))]


# What is reached ----------------------------------------------------------------------------------------------


@dataclass
class _Reached:
    """What decides a verb's bytes: modules that count whole, and single definitions of others."""

    modules: set[str] = field(default_factory=set)
    definitions: dict[tuple[str, str], list[ast.AST]] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def _reached(start: str, rows: Rows, runs: tuple[str, ...]) -> _Reached:
    reached, chosen = _Reached(), dict(rows)
    todo: list[tuple[str, str | None]] = [(start, None)]
    while todo:
        module, name = todo.pop()
        if module in PLUMBING or name in UNCOUNTED:
            continue
        if name is None:
            if module not in reached.modules:
                reached.modules.add(module)
                todo += [(parent, None) for parent in _parents(module)]
                todo += _imports(_path(module).read_bytes(), _path(module))
        elif (module, name) not in reached.definitions:
            path = _path(module)
            source = _definitions(path, path.read_bytes())
            nodes = source.nodes(name, chosen.get(f"{module}.{name}"))
            reached.definitions[module, name] = nodes
            todo += [(parent, None) for parent in _parents(module)]
            for node in nodes:
                todo += source.needs(module, node, runs=f"{module}.{name}" in runs)
    return reached


def _path(module: str) -> Path:
    path = module_file(module)
    if path is None:
        raise ValueError(f"{module} is no module of ipdiff")
    return path


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(2, len(parts))]


@cache  # these go by the file's bytes: ten digests share most of their files
def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


@cache
def _text(source: bytes) -> str:
    return _canonical(_parsed(source))


@cache
def _imports(source: bytes, path: Path) -> list[tuple[str, str | None]]:
    """What a whole file imports of this package, at its top or inside a function, or names as `module:function`."""
    return [found for node in _walked(source) for found in _imported(node, path)]


@cache
def _walked(source: bytes) -> list[ast.AST]:
    """Nodes of a file that can name another one, but for those that only annotations need."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = [_parsed(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Constant):
            found.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)
    return found


def _imported(node: ast.AST, path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, None) for one that counts whole, (module, name) for a definition.

    Raises:
        ValueError: an import whose target could not be counted.
    """
    if isinstance(node, ast.Constant):
        match = FUNCTION.fullmatch(node.value) if isinstance(node.value, str) else None
        if match and module_file(match[1]):
            yield _target(match[1], match[2])
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if BY_DEFINITION.fullmatch(alias.name):
                raise ValueError(f"{path} line {node.lineno}: import what is used from {alias.name} by name")
            if alias.name.startswith("ipdiff.") and module_file(alias.name):
                yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError(f"{path} line {node.lineno}: relative import; write it in full, or it is not counted")
        for alias in node.names if node.module and node.module.split(".")[0] == "ipdiff" else ():
            inner = f"{node.module}.{alias.name}"
            if BY_DEFINITION.fullmatch(inner) or (BY_DEFINITION.fullmatch(str(node.module)) and alias.name == "*"):
                raise ValueError(f"{path} line {node.lineno}: import what is used from {inner} by name")
            if module_file(inner):
                yield inner, None
            elif alias.name in _handed_out(str(node.module)):
                raise ValueError(f"{path} line {node.lineno}: import {alias.name} from where it is defined")
            elif node.module != "ipdiff":
                yield _target(str(node.module), alias.name)


def _handed_out(module: str) -> set[str]:
    """Names that a package imports only when they are asked for (its `__all__`): an import of one shows no file."""
    path = module_file(module)
    if path is None or path.name != "__init__.py":
        return set()
    tree = _parsed(path.read_bytes())
    if not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        return set()
    named = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return {str(item.value) for node in named for item in ast.walk(node.value) if isinstance(item, ast.Constant)}


@cache
def _definitions(path: Path, source: bytes) -> _Definitions:
    return _Definitions(path, source)


def _target(module: str, name: str) -> tuple[str, str | None]:
    return (module, name) if BY_DEFINITION.fullmatch(module) else (module, None)


class _Definitions:
    """The top level of a module that counts by definition."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path = path
        self._needs: dict[tuple[ast.AST, bool], list[tuple[str, str | None]]] = {}
        self.known: dict[str, ast.stmt] = {}
        self.imports: dict[str, ast.Import | ast.ImportFrom] = {}
        for node in _parsed(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.known[node.name] = node
            elif isinstance(node, ast.Assign):
                self.known.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.known[node.target.id] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update({alias.asname or alias.name: node for alias in node.names})

    def nodes(self, name: str, keys: tuple[str, ...] | None) -> list[ast.AST]:
        """A definition; of a registry the rows of these keys alone, if they are given."""
        node = self.known.get(name)
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if node is None or keys is None or not isinstance(value, ast.Dict):
            return [] if node is None else [node]
        pairs = zip(value.keys, value.values, strict=True)
        rows = {key.value: row for key, row in pairs if isinstance(key, ast.Constant)}
        return [part for key in sorted(keys) if key in rows for part in (ast.Constant(key), rows[key])]

    def needs(self, module: str, node: ast.AST, *, runs: bool) -> list[tuple[str, str | None]]:
        """What a definition names: others of its module, what that imports, and if it `runs`, functions as text."""
        if (node, runs) not in self._needs:
            self._needs[node, runs] = list(self._found(module, node, runs))
        return self._needs[node, runs]

    def _found(self, module: str, node: ast.AST, runs: bool) -> Iterator[tuple[str, str | None]]:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in self.known:
                yield module, part.id
            elif isinstance(part, ast.Name) and part.id in self.imports:
                yield from self._named(part.id)
            elif runs or not isinstance(part, ast.Constant):
                yield from _imported(part, self.path)

    def _named(self, name: str) -> Iterator[tuple[str, str | None]]:
        """What the module's import of this one name brings."""
        node = self.imports[name]
        only = [alias for alias in node.names if (alias.asname or alias.name) == name]
        one = (
            ast.Import(only, lineno=node.lineno)
            if isinstance(node, ast.Import)
            else ast.ImportFrom(node.module, only, node.level, lineno=node.lineno)
        )
        yield from _imported(one, self.path)


# The text that is hashed ----------------------------------------------------------------------------------------


_IGNORED = {"ctx", "kind", "type_comment", "type_ignores", "annotation", "returns", "type_params"}
"""Fields of a syntax tree that decide no number."""


@cache
def _text_of(node: ast.AST) -> str:
    """`_canonical` of a node of a parsed file, once."""
    return _canonical(node)


def _canonical(node: object) -> str:
    """A syntax tree as text: node types, names and values; no positions, annotations, docstrings or empty fields."""
    if isinstance(node, list):
        return "[" + ",".join(_canonical(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in _IGNORED or value is None:
            continue
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = _without_docstring(value)
        if value != []:
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Drop strings that stand alone: docstrings of modules, classes, functions and attributes."""
    return [
        stmt
        for stmt in body
        if not (
            isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Constant) and isinstance(stmt.value.value, str)
        )
    ]
