"""The watch on training in the grid: cells of its own, and none that others have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from unit.params_factory import put, small, write

from ipdiff.interop import checking
from ipdiff.pipeline import config, grid, jobs
from ipdiff.pipeline.commands.exchange import import_
from ipdiff.pipeline.engines import dvc_files

WATCH = {
    "kind": "monitor",
    "title": "A watch on training",
    "datasets": ["tiny"],
    "models": ["adm", "adm-ip"],
    "samplers": ["ancestral-2-n16"],
}
SETS = {f"tiny/adm/s0/{step}" for step in (4, 8)} | {
    f"tiny/adm-ip/s{seed}/{step}" for seed in (0, 1) for step in (4, 8)
}


def cells(folder: Path, raw: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Cells of the study, and all that decides one."""
    folder.mkdir()
    write(folder, raw)
    known = grid.load(folder)
    return {
        cell.directory: (cell.command, cell.inputs, cell.outputs, known.param_values(cell), cell.code)
        for cell in known.study("small")
    }


def test_it_adds_cells_at_every_checkpoint_and_changes_none(tmp_path: Path) -> None:
    before = cells(tmp_path / "a", small())
    after = cells(tmp_path / "b", put(small(), "figures.watch", WATCH))
    for name in before.keys() - {"report/small"}:
        assert after[name] == before[name]
    assert after.keys() - before.keys() == {
        "figures/small/watch",
        "halves/tiny/16",
        *(f"{kind}/{run}/ancestral-2-n16" for kind in ("samples", "metrics") for run in SETS),
    }
    shown = [path for path in after["figures/small/watch"][1] if path.endswith("/metrics.json")]
    assert shown == [f"metrics/{run}/ancestral-2-n16/metrics.json" for run in sorted(SETS, key=_order)]


def _order(run: str) -> tuple[bool, int, int]:
    _, model, seed, step = run.split("/")
    return model == "adm-ip", int(step), int(seed[1:])


def test_it_ends_with_the_run_or_shows_the_steps_it_is_given(tmp_path: Path) -> None:
    raw = put(small(), "figures.watch", WATCH)
    put(raw, "datasets.tiny.final_step.adm", 4)
    write(tmp_path, raw)
    study = grid.load(tmp_path).studies.load("small")
    watched = [(point.model, point.step) for point in config.points(study, study.figure("watch"))]
    assert watched == [("adm", 4), ("adm-ip", 4), ("adm-ip", 8)]
    write(tmp_path, put(raw, "figures.watch.steps", [8]))
    study = grid.load(tmp_path).studies.load("small")
    assert {point.step for point in config.points(study, study.figure("watch"))} == {8}


def test_dvc_draws_it_over_training_steps(tmp_path: Path) -> None:
    write(tmp_path, put(small(), "figures.watch", WATCH))
    text = dvc_files.render(grid.load(tmp_path), "small")
    plot = text.partition("figures/small/watch/figure.csv:\n")[2]
    assert "x: step\n" in plot[:200]


@pytest.mark.parametrize(("earlier", "said"), [((-3, -2, -1), True), ((-3, -1, -2), False), ((-2, -1), False)])
def test_the_stage_says_so_when_a_third_checkpoint_rises(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    earlier: tuple[float, ...],
    said: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = put(small(), "models.official", {"family": "adm", "imported": True})
    write(tmp_path, put(raw, "datasets.tiny.classifier.steps", 2))
    spec = config.Studies().owner("tiny").run_spec("tiny", "official", 0)
    torch.save({name: torch.zeros(shape) for name, shape in checking.shapes(spec).items()}, "a.pt")
    import_.import_checkpoint(Path("a.pt"), "tiny/official", step=40)
    known = grid.load()
    names = {"dataset": "tiny", "model": "official", "seed": "0", "sampler": "ancestral-2-n16"}
    for place, fid in enumerate(earlier, 1):  # below any that can be measured
        path = Path(known.cell("evaluate", **names, step=str(10 * place)).outputs[0])
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"fid": fid}))
    cell = known.cell("evaluate", **names, step="40")
    for behind in known.needed(cell):
        if not behind.given:
            jobs.make(behind)
    assert json.loads(Path(cell.outputs[0]).read_text())["n"] == 16
    line = (
        "ipdiff: tiny official seed 0: FID rises over 3 checkpoints in a row, from step 10 to 40 (-3.00, -2.00, -1.00, "
    )
    assert (line in capsys.readouterr().err) == said
