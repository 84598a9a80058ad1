"""The house: its rooms, their limits, the picture and the pages that describe them."""

from __future__ import annotations

import graphlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from ipdiff.metrics.spec import METRICS
from ipdiff.pipeline.stages import STAGES
from ipdiff.spec import FAMILIES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ipdiff"


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    """docs/rooms.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs/rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def reading_list() -> list[Path]:
    page = (ROOT / "docs/architecture.md").read_text().partition("## Dive into the code")[2]
    return [
        (ROOT / "docs" / name).resolve() for name in re.findall(r"^\d+\. \[[^]]+\]\(([^)]+)\): \w", page, re.MULTILINE)
    ]


def test_the_top_level_has_few_entries() -> None:
    entries = {path.relative_to(PACKAGE).parts[0] for path in files_of(PACKAGE)}
    assert len(entries) <= 22, sorted(entries)


def test_a_room_has_few_files() -> None:
    for folder in {path.parent for path in files_of(PACKAGE)} - {PACKAGE}:
        here = [path.name for path in files_of(folder) if path.parent == folder]
        assert len(here) <= 10, f"{folder.relative_to(ROOT)} has {sorted(here)}"


def test_no_file_is_long() -> None:
    long = {path for path in files_of(PACKAGE) if len(path.read_bytes().splitlines()) > 450}
    assert [path.relative_to(PACKAGE).as_posix() for path in long] == []


def test_no_import_goes_round_in_a_circle(rooms: ModuleType) -> None:
    graph = rooms.module_graph()
    assert len(graph) > 100
    for found in (graph, rooms.room_graph()):
        list(graphlib.TopologicalSorter(found).static_order())  # raises CycleError


def test_imports_are_found_wherever_they_stand(rooms: ModuleType, tmp_path: Path) -> None:
    source = (
        "import ipdiff.rng\nfrom ipdiff.nets import adm, ADMUNet\nfrom os import path\n"
        "def late():\n    from ipdiff.data.images import to_network\n"
    )
    (tmp_path / "probe.py").write_text(source)
    known = ["ipdiff.rng", "ipdiff.nets", "ipdiff.nets.adm", "ipdiff.data.images", "ipdiff.cli"]
    assert rooms.imports(tmp_path / "probe.py", known) == {"ipdiff.rng", "ipdiff.nets.adm", "ipdiff.data.images"}


def test_every_room_stands_in_the_contracts(rooms: ModuleType) -> None:
    outer, inner = rooms.layers()
    named = [room for row in outer for room in row if room != "pipeline"]
    named += [f"pipeline.{room}" for row in inner for room in row]
    assert sorted(named) == sorted(rooms.room_graph())
    (forbidden,) = (contract for contract in rooms.contracts() if contract["type"] == "forbidden")
    science = {room for room in named if "." not in room} - {"cli"}
    assert {name.removeprefix("ipdiff.") for name in forbidden["source_modules"]} == science


def test_no_arrow_of_the_rooms_runs_back(rooms: ModuleType) -> None:
    outer, inner = rooms.layers()
    rank = {room: -place for place, row in enumerate(outer) for room in row}
    inside = {f"pipeline.{room}": rank["pipeline"] - place / 100 for place, row in enumerate(inner) for room in row}
    rank |= inside
    for room, targets in rooms.room_graph().items():
        assert all(rank[target] < rank[room] for target in targets), room


def test_arrows_that_follow_from_others_are_left_out(rooms: ModuleType) -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}
    assert rooms.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}


def test_picture_and_lists_are_fresh(rooms: ModuleType) -> None:
    for path, text in rooms.expected().items():
        assert path.read_text() == text, f"{path} is stale: make graph"


def test_the_picture_has_every_room_once(rooms: ModuleType) -> None:
    names = re.findall(r'class="name[^>]*>([^<]+)<', rooms.picture())
    drawn = [rooms.path_of(room) for room in rooms.room_graph() if room not in rooms.COMMON]
    assert sorted(names) == sorted(path.name + "/" * path.is_dir() for path in drawn)


def test_the_way_through_the_code_is_short() -> None:
    listed = reading_list()
    assert 10 <= len(listed) == len(set(listed)) <= 17
    assert all(path.is_file() and path.is_relative_to(PACKAGE) for path in listed)
    assert sum(len(path.read_text().splitlines()) for path in listed) <= 3500


def test_the_way_through_the_code_is_closed(rooms: ModuleType) -> None:
    """Each file is used by another of the list, or is a stage; and none knows the other wing."""
    files, graph = rooms.modules(), rooms.module_graph()
    listed = {name for name, path in files.items() if path in reading_list()}
    assert len(listed) == len(reading_list())

    def used(module: str) -> set[str]:
        packages = {name for name in graph[module] if files[name].name == "__init__.py"}
        return graph[module].union(*(graph[name] for name in packages))

    reached = set().union(*(used(module) for module in listed))
    named = {text.partition(":")[0] for text in (FAMILIES["adm"].build, METRICS["fid"].function)}
    assert listed <= reached | {stage.module for stage in STAGES.values()} | named
    assert {"ipdiff.training.segment", "ipdiff.sample_sets.sample", "ipdiff.metrics.evaluate"} <= listed
    assert not [name for name in reached if name.startswith("ipdiff.pipeline")]
