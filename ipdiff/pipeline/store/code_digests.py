"""A digest of the code behind each stage: the import closure of its module, comments and layout left out."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2]

STAGES = {
    "prepare": "ipdiff.data.prepare",
    "classifier": "ipdiff.metrics.features.classifier",
    "reference": "ipdiff.metrics.reference",
    "neighbours": "ipdiff.metrics.neighbours",
    "train": "ipdiff.training.segment",
    "resume": "ipdiff.training.resume",
    "sample": "ipdiff.sample_sets.sample",
    "evaluate": "ipdiff.metrics.evaluate",
    "analyse": "ipdiff.sample_sets.prediction_error",
    "table": "ipdiff.report.tables.table",
    "figure": "ipdiff.report.figures.figure",
    "report": "ipdiff.report.pages.html",
}
"""The module whose import closure makes a verb's bytes."""

PLUMBING = {"ipdiff.errors", "ipdiff.work.files", "ipdiff.work.locks", "ipdiff.work.signals"}
"""Imported by stages but deciding no byte."""

BY_NAME = "ipdiff.spec"
"""Counted by definition, not by file: a stage depends on the records it names and on what those name."""

UNCOUNTED = {"FORBID", "Work"}
"""Definitions of the module of records that decide no byte."""

DATA = {"ipdiff.report.paper": "report/paper_values.yaml"}
"""Modules that read a file of the package: its bytes count as their code."""


def module_file(module: str) -> Path | None:
    """The source file of a module of this package, or None."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def _tree(path: Path) -> ast.Module:
    return _parsed(path.read_bytes())


@cache  # these go by the file's bytes: ten digests share most of their files
def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


@cache
def _import_statements(source: bytes) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(_parsed(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def _text(source: bytes) -> str:
    return _canonical(_parsed(source))


def _imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in _import_statements(path.read_bytes()):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.level:
            raise ValueError(f"{path} line {node.lineno}: relative import; write it in full, or it is not counted")
        elif node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "ipdiff" and name != "ipdiff" and module_file(name)}


def closure(verb: str) -> dict[str, Path]:
    """Modules and files that decide what a verb writes, sorted by module name."""
    todo, seen = [STAGES[verb]], set[str]()
    while todo:
        module = todo.pop()
        if module in seen or module in PLUMBING or module == BY_NAME:
            continue
        seen.add(module)
        todo += _imports(_path(module)) | _parents(module)
    return {module: _path(module) for module in sorted(seen)}


def _path(module: str) -> Path:
    path = module_file(module)
    if path is None:
        raise ValueError(f"{module} is no module of ipdiff")
    return path


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(2, len(parts))}


def code_files(verb: str) -> list[Path]:
    """Every file whose edit may change a verb's code digest."""
    modules = closure(verb)
    return [*modules.values(), *_data_files(modules), _path(BY_NAME)]


@lru_cache
def code_digest(verb: str) -> str:
    """md5 over the syntax trees of a verb's closure; the same on every Python from 3.11."""
    digest = hashlib.md5(usedforsecurity=False)
    files = closure(verb)
    for module, path in files.items():
        digest.update(f"{module}\n{_text(path.read_bytes())}\n".encode())
    for path in _data_files(files):
        digest.update(path.read_bytes())
    for name, node in _definitions({name for path in files.values() for name in _names_from(path)}).items():
        digest.update(f"{BY_NAME}.{name}\n{_canonical(node)}\n".encode())
    return digest.hexdigest()


def _data_files(modules: Iterable[str]) -> list[Path]:
    return [PACKAGE / DATA[module] for module in modules if module in DATA]


def _names_from(path: Path) -> set[str]:
    """What a file imports by name from the module of records; ValueError if it imports the module whole."""
    found: set[str] = set()
    package, _, module = BY_NAME.rpartition(".")
    for node in _import_statements(path.read_bytes()):
        names = {alias.name for alias in node.names}
        source = node.module if isinstance(node, ast.ImportFrom) else None
        if BY_NAME in names or (source == package and module in names) or (source == BY_NAME and "*" in names):
            raise ValueError(f"{path} line {node.lineno}: import what is used from {BY_NAME} by name")
        if source == BY_NAME:
            found |= names
    return found


def _definitions(names: set[str]) -> dict[str, ast.stmt]:
    """Top-level definitions of the module of records that `names` reach, sorted by name."""
    known: dict[str, ast.stmt] = {}
    for node in _tree(_path(BY_NAME)).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            known[node.name] = node
        elif isinstance(node, ast.Assign):
            known.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            known[node.target.id] = node
    todo, seen = list(names), set[str]()
    while todo:
        name = todo.pop()
        if name in seen or name not in known or name in UNCOUNTED:
            continue
        seen.add(name)
        todo += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return {name: known[name] for name in sorted(seen)}


_IGNORED = {"ctx", "kind", "type_comment", "type_ignores", "annotation", "returns", "type_params"}
"""Fields of a syntax tree that decide no number."""


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
