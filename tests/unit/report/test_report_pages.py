"""Figures and the HTML report. Every number and image here is SYNTHETIC."""

from __future__ import annotations

import csv
import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image
from unit.report_factory import cifar, recipes, record, write

from ipdiff.errors import UserError
from ipdiff.report import labels, paper, results
from ipdiff.report.figures import canvas, figure
from ipdiff.report.figures import samples as grids
from ipdiff.report.pages import cards, page
from ipdiff.report.pages import report as pages
from ipdiff.report.pages.outcome import pairs
from ipdiff.report.spec import Figure, Point, Study, Table
from ipdiff.report.tables import entries, table
from ipdiff.report.tables.entries import Entry

VOID = {"meta", "img", "br", "hr", "link", "input"}


def metrics(folder: Path, fids: dict[tuple[str, str], float], **changes: object) -> list[Path]:
    """Synthetic metrics of (model, sampler) for seeds 0 and 1, the second 0.1 higher."""
    return [
        write(
            folder / f"{model}-{sampler}-{seed}-{len(changes)}.json",
            model=model,
            sampler=sampler,
            seed=seed,
            fid=fid + seed / 10,
            **changes,
        )
        for (model, sampler), fid in fids.items()
        for seed in (0, 1)
    ]


FIDS = {
    ("adm", "ancestral-10"): 9.0,
    ("adm", "ancestral-100"): 5.0,
    ("adm-ip", "ancestral-10"): 7.0,
    ("adm-ip", "ancestral-100"): 4.0,
}
LINES = Figure("lines", "Synthetic <lines>", ["digits"], ["adm", "adm-ip"], ["ancestral-10", "ancestral-100"])


def samples(folder: Path, model: str, sampler: str, channels: int = 1, count: int = 20) -> Path:
    """A synthetic sample set of 8 x 8 pixels: image i is one flat grey of 10 i."""
    path = folder / "samples" / "digits" / model / "s0" / "1000" / sampler / "samples.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, channels), 10, np.uint8)
    np.savez(path, arr_0=images)
    return path


# Figures ------------------------------------------------------------------------------------------------------


def test_lines_write_the_same_bytes_again(tmp_path: Path) -> None:
    files = metrics(tmp_path, FIDS)
    figure.run("f", LINES, files, tmp_path / "a")
    figure.run("f", LINES, files[::-1], tmp_path / "b")
    for name in ("figure.png", "figure.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "figure.png") as image:
        assert "Software" not in image.info
        assert image.size[0] > 800
    found = entries.read_csv(tmp_path / "a" / "figure.csv")
    assert [(e.model, e.sampler, e.mean) for e in found] == [(m, s, fid + 0.05) for (m, s), fid in FIDS.items()]


def test_the_users_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl

    files = metrics(tmp_path, FIDS)
    figure.run("f", LINES, files, tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9}):
        figure.run("f", LINES, files, tmp_path / "b")
        assert mpl.rcParams["font.size"] == 20
    assert (tmp_path / "a/figure.png").read_bytes() == (tmp_path / "b/figure.png").read_bytes()


@pytest.mark.parametrize(
    ("scale", "values"), [("log", (40.0, 2.0)), ("linear", (40.0, 30.0)), ("linear", (40.0, -0.1))]
)
def test_figures_of_several_sizes_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str, values: tuple[float, float]
) -> None:
    drawn = []
    monkeypatch.setattr(figure.canvas, "save", lambda sheet, out: drawn.append(sheet))
    keys = [key for key in FIDS if key[0] == "adm"]
    line = dataclasses.replace(LINES, models=["adm"])
    figure.run("f", line, metrics(tmp_path, dict(zip(keys, values, strict=True))), tmp_path / "a")
    (axis,) = drawn[0].axes
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert low < min(values) < max(values) < high


def test_lines_over_training_steps_need_each_step(tmp_path: Path) -> None:
    view = dataclasses.replace(LINES, x="step", steps=[1000, 2000], samplers=["ancestral-100"])
    files = metrics(tmp_path, FIDS)
    with pytest.raises(UserError, match="figure 'f': no record of digits adm ancestral-100 step 2000"):
        figure.run("f", view, files, tmp_path / "a")
    figure.run("f", view, files + metrics(tmp_path, FIDS, step=2000), tmp_path / "a")
    assert len(entries.read_csv(tmp_path / "a/figure.csv")) == 4


def test_one_panel_never_mixes_protocols(tmp_path: Path) -> None:
    adm = {key: fid for key, fid in FIDS.items() if key[0] == "adm"}
    ours = {key: fid for key, fid in FIDS.items() if key[0] == "adm-ip"}
    with pytest.raises(UserError, match="one panel holds one kind"):
        figure.run("f", LINES, metrics(tmp_path, adm) + metrics(tmp_path, ours, n=7), tmp_path / "a")


def test_a_place_without_a_panel_stays_empty() -> None:
    datasets = ["a", "b", "c", "d"]
    view = dataclasses.replace(LINES, datasets=datasets, models=["adm"], samplers=["ancestral-100"])
    cells = results.Results("f", [record(dataset=name) for name in datasets])
    made = [figure.value(cells.get(Point(name, "adm", "ancestral-100")), "fid", None) for name in datasets]
    assert [axis.get_visible() for axis in figure._draw(view, made, None).axes] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("made", "curves"), [({}, 1), ({"batch_size": 64}, 0)])
def test_the_papers_curve_stands_beside_comparable_ones_only(made: dict[str, Any], curves: int) -> None:
    view = dataclasses.replace(
        LINES, datasets=["cifar10"], models=["adm"], x="step", steps=[460_000], samplers=["ancestral-100"]
    )
    view = dataclasses.replace(view, paper="ablation")
    theirs = paper.select(view.paper)
    cells = results.Results("f", [cifar("adm", 460_000, made)])
    drawn = [figure.value(cells.get(Point("cifar10", "adm", "ancestral-100", 460_000)), "fid", theirs)]
    canvas = figure._draw(view, drawn, theirs)
    names = [str(text) for text in canvas.axes[0].get_legend_handles_labels()[1]]
    assert names.count("ADM, paper") == curves


@pytest.mark.parametrize(
    ("fewer", "names"), [(True, ["ADM (seeds 0, 1)", "ADM-IP (seed 0)"]), (False, ["ADM", "ADM-IP"])]
)
def test_lines_over_different_seeds_say_so(tmp_path: Path, fewer: bool, names: list[str]) -> None:
    files = [
        path
        for path in metrics(tmp_path, FIDS)
        if not (fewer and path.name.startswith("adm-ip") and "-1-" in path.name)
    ]
    cells = results.Results("f", results.load(files))
    made = [figure.value(cells.get(Point("digits", *at, 1000)), "fid", None) for at in FIDS]
    canvas = figure._draw(LINES, made, None)
    assert [str(text) for text in canvas.axes[0].get_legend_handles_labels()[1]] == names


def test_a_model_has_one_colour() -> None:
    assert len({canvas.colour(name) for name in labels.MODELS}) == len(labels.MODELS)
    assert canvas.colour("adm-ip-g005") == canvas.colour("adm-ip-g005")


def test_samples_are_shown_pixel_by_pixel(tmp_path: Path) -> None:
    files = [samples(tmp_path, "adm", "ancestral-10"), samples(tmp_path, "adm-ip", "ancestral-10", channels=3)]
    view = dataclasses.replace(LINES, kind="samples", images=18)
    figure.run("f", view, files, tmp_path / "a")
    figure.run("f", view, files, tmp_path / "b")
    assert (tmp_path / "a/figure.png").read_bytes() == (tmp_path / "b/figure.png").read_bytes()
    with Image.open(tmp_path / "a" / "figure.png") as image:
        greys = {pixel for count, pixel in image.convert("RGB").getcolors(1 << 20) or [] if count >= 2 * 64 * 64}
    assert greys >= {(10 * i, 10 * i, 10 * i) for i in range(18)}
    with (tmp_path / "a" / "figure.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["seed"], row["step"], row["sampler"], row["last"]) for row in rows] == [
        ("adm", "0", "1000", "ancestral-10", "17"),
        ("adm-ip", "0", "1000", "ancestral-10", "17"),
    ]
    assert not any(str(tmp_path) in row["source"] for row in rows)


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 16), (1, 37)])
def test_the_images_of_a_drawn_grid_are_read_back(tmp_path: Path, channels: int, count: int) -> None:
    files = [samples(tmp_path, model, "ancestral-10", channels, count) for model in ("adm", "adm-ip")]
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8) for _ in files]
    for path, images in zip(files, sets, strict=True):
        np.savez(path, arr_0=images)
    figure.run("f", dataclasses.replace(LINES, kind="samples", images=count), files, tmp_path / "a")
    found = list(grids.read(tmp_path / "a"))
    assert [place.model for place, _ in found] == ["adm", "adm-ip"]
    for (_, images), drawn in zip(found, sets, strict=True):
        np.testing.assert_array_equal(images, np.broadcast_to(drawn, (count, 8, 8, 3)))


@pytest.mark.parametrize("harm", ["no place", "another picture", "no picture"])
def test_a_grid_that_cannot_be_read_back_is_named(tmp_path: Path, harm: str) -> None:
    figure.run(
        "f", dataclasses.replace(LINES, kind="samples"), [samples(tmp_path, "adm", "ancestral-10")], tmp_path / "a"
    )
    csv_file, png = tmp_path / "a/figure.csv", tmp_path / "a/figure.png"
    if harm == "no place":
        csv_file.write_text(csv_file.read_text().replace("left", "right"))
    elif harm == "another picture":
        Image.new("RGB", (9, 9)).save(png)
    else:
        png.write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="make the figure again"):
        list(grids.read(tmp_path / "a"))


def test_the_label_of_a_row_of_samples_keeps_off_its_images(tmp_path: Path) -> None:
    """Left of the first image, which is black: a column of white as wide as a letter."""
    view = dataclasses.replace(LINES, kind="samples", images=1)
    named = {"adm-ip": (0.1,)}
    gammas = {("digits", model): strength for model, strength in named.items()}
    figure.run("f", view, [samples(tmp_path, "adm-ip", "ancestral-10")], tmp_path / "a", gammas=gammas)
    with Image.open(tmp_path / "a" / "figure.png") as image:
        grey = np.asarray(image.convert("L"))
    first = int(np.argmax((grey == 0).sum(axis=0) >= 64))
    assert (grey[:, first - 10 : first] == 255).all()


def test_bad_sample_sets_are_named(tmp_path: Path) -> None:
    view = dataclasses.replace(LINES, kind="samples", images=30)
    with pytest.raises(UserError, match="expected 30 images or more"):
        figure.run("f", view, [samples(tmp_path, "adm", "ancestral-10")], tmp_path / "a")
    with pytest.raises(UserError, match="expected samples/DATASET"):
        figure.run("f", view, [tmp_path / "elsewhere.npz"], tmp_path / "a")


def test_a_runs_checkpoints_are_one_curve_of_its_loss(tmp_path: Path) -> None:
    """However they are ordered, and whatever the steps of others are."""
    said = {("adm", 8): "5,0.5\n8,0.4", ("adm-ip", 12): "9,0.3", ("adm", 4): "2,0.9\n4,0.7", ("adm-ip", 4): "4,0.8"}
    files = [tmp_path / f"runs/digits/{model}/s3/{step}/loss.csv" for model, step in said]
    for path, text in zip(files, said.values(), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(f"step,loss\n{text}\n")
    view = Figure("training", "Loss", ["digits"], ["adm", "adm-ip"])
    figure.run("f", view, files, tmp_path / "a")
    assert (tmp_path / "a/figure.csv").read_text().split() == [
        "dataset,model,seed,step,loss",
        *("digits,adm,3,2,0.9", "digits,adm,3,4,0.7", "digits,adm,3,5,0.5", "digits,adm,3,8,0.4"),
        *("digits,adm-ip,3,4,0.8", "digits,adm-ip,3,9,0.3"),
    ]
    assert (tmp_path / "a/figure.png").read_bytes()[:4] == b"\x89PNG"
    files[0].write_text("step,loss\n5,nan\n")
    with pytest.raises(UserError, match=r"loss\.csv: expected runs/DATASET/MODEL/sSEED/STEP/loss\.csv with step, loss"):
        figure.run("f", view, files, tmp_path / "a")


# The report ---------------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Collects the text and fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.scripts = 0
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.attributes += attrs
        self.links += [found[key] or "" for key in ("href", "src") if key in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            assert data == f"\n{(page.TEMPLATES / 'script.js').read_text()}"  # nothing but the page's own
        elif "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A synthetic study of two tables and a figure, reported."""
    wide = Table(
        "Synthetic & <b>bold</b>",
        ["fid"],
        ["sampler"],
        ["model"],
        ["digits"],
        ["adm", "adm-ip"],
        ["ancestral-10", "ancestral-100"],
        compare={"adm-ip": "adm"},
        note="A <note> on `<T' = 5>`",
        paper="table3",
    )
    fast = Table(
        "Fewer steps at T' = 10",
        ["fid"],
        [],
        [],
        compare={"adm-ip": "adm"},
        points=[Point("digits", "adm", "ancestral-100", 1000), Point("digits", "adm-ip", "ancestral-10", 1000)],
    )
    again = dataclasses.replace(wide, title="The same again", paper=None)
    study = Study(
        "A <study>",
        ["digits"],
        {"default": [0, 1]},
        {"wide": wide, "fast": fast, "again": again},
        {"lines": LINES},
        'Opening "words" & more',
    )
    files = metrics(tmp_path, FIDS)
    folders = {name: tmp_path / "tables" / name for name in study.tables}
    for name, view in study.tables.items():
        table.run(name, view, files, folders[name])
    figure.run("lines", LINES, files, tmp_path / "lines")
    behind = [recipe for at in FIDS for seed in (0, 1) for recipe in recipes(*at, seed)]
    pages.run("mini", study, folders, {"lines": tmp_path / "lines"}, behind, tmp_path / "out")
    return tmp_path / "out" / "index.html"


def test_the_report_is_well_formed_and_escaped(report: Path) -> None:
    text = report.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    words = "".join(checker.words)
    assert "A <study>" in words
    assert "Synthetic & <b>bold</b>" in words
    assert "A <note> on <T' = 5>" in words
    assert "<code>&lt;T&#39; = 5&gt;</code>" in text
    assert "<note>" not in text
    assert "<lines>" not in text
    assert "T\u2032 = 10" in words
    assert "arXiv:2301.11706" in words


def test_no_text_leaves_its_attribute(tmp_path: Path) -> None:
    title = """'x' "onerror="x" & <img src=x>"""
    view = dataclasses.replace(LINES, title=title, note=title)
    figure.run("f", view, metrics(tmp_path, FIDS), tmp_path / "f")
    behind = [recipe for at in FIDS for seed in (0, 1) for recipe in recipes(*at, seed)]
    study = Study(title, ["digits"], {"default": [0, 1]}, {}, {"f": view}, title)
    pages.run("s", study, {}, {"f": tmp_path / "f"}, behind, tmp_path / "out")
    checker = Checker()
    checker.feed((tmp_path / "out/index.html").read_text())
    assert checker.open == []
    assert checker.attributes.count(("alt", title)) == 1
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert checker.scripts == 1
    assert "".join(checker.words).count(title) == 6  # title, headline, opening, contents, heading, caption


def test_a_template_that_names_what_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        page.write("index", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_self_contained(report: Path) -> None:
    checker = Checker()
    checker.feed(report.read_text())
    outside = [link for link in checker.links if not link.startswith(("#", "cards.html#", "data:image/png;base64,"))]
    assert set(outside) == {
        "https://arxiv.org/abs/2301.11706",
        "cards.html",
        *(
            f"../../tables/mini/{name}/table.{kind}"
            for name in ("wide", "fast", "again")
            for kind in ("csv", "md", "tex")
        ),
        "../../figures/mini/lines/figure.csv",
        "../../figures/mini/lines/figure.png",
    }
    anchors = [link[1:] for link in checker.links if link.startswith("#")]
    assert set(anchors) <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))
    assert "url(" not in report.read_text()


@pytest.mark.parametrize("turned", [False, True])
def test_a_card_has_the_seeds_of_all_views(tmp_path: Path, turned: bool) -> None:
    of = {
        seed: record(model="adm", seed=seed, fid=9.25 - seed, sfid=3.5 + seed, sampler="ancestral-10")
        for seed in (0, 1)
    }

    def shown(metric: str, *seeds: int) -> Entry:
        (found,) = results.aggregate(of[seed] for seed in seeds)
        return entries.value(found, metric, None)

    views = [shown("fid", 0), shown("fid", 0, 1), shown("sfid", 1)]
    behind = [recipe for seed in (0, 1) for recipe in recipes("adm", "ancestral-10", seed)]
    cards.run("Two views", reversed(views) if turned else views, behind, tmp_path)
    text = (tmp_path / "cards.html").read_text()
    rows = re.findall(r'rowspan="2">(\d)</th><td class="n">(.*?)</td><td class="n">(.*?)</td>', text)
    assert rows == ([("0", "", "9.25"), ("1", "4.5", "8.25")] if turned else [("0", "9.25", ""), ("1", "8.25", "4.5")])


def test_every_number_leads_to_its_card(report: Path) -> None:
    page, cards = Checker(), Checker()
    page.feed(report.read_text())
    text = report.with_name("cards.html").read_text()
    cards.feed(text)
    assert cards.open == []
    numbers = [link.partition("#")[2] for link in page.links if link.startswith("cards.html#")]
    shown = report.read_text().count('<td class="n ') - report.read_text().count("<td></td>")
    assert len(numbers) == shown
    assert set(numbers) == set(cards.ids) == {f"digits/{model}/1000/{sampler}" for model, sampler in FIDS}
    for model, sampler in FIDS:
        for seed in (0, 1):
            at = f"digits/{model}/s{seed}/1000/{sampler}"
            assert f"snakemake --cores all metrics/{at}/metrics.json" in text
            assert f"../../receipts/samples/{at}.json" in cards.links
            assert f"../../metrics/{at}/recipe.json" in cards.links
    for digest in ("d", "c", "5", "e"):  # data, checkpoint, samples, reference
        assert text.count(f"<code>{digest * 12}</code>") == 2 * len(FIDS)
    assert "a.<b>" not in text
    assert "a.<b>" in "".join(cards.words)


def test_a_number_without_its_recipe_is_named(tmp_path: Path) -> None:
    view = Table("t", ["fid"], ["model"], ["metric"], ["digits"], ["adm"], ["ancestral-10"])
    table.run("t", view, metrics(tmp_path, {("adm", "ancestral-10"): 9.0}), tmp_path / "t")
    study = Study("S", ["digits"], {"default": [0, 1]}, {"t": view})
    known = [recipe for seed in (0, 1) for recipe in recipes("adm", "ancestral-10", seed)]
    known = [recipe for recipe in known if not recipe["cell"].startswith("samples")]
    with pytest.raises(UserError, match=r"samples/digits/adm/s0/1000/ancestral-10/recipe\.json was not given"):
        pages.run("s", study, {"t": tmp_path / "t"}, {}, known, tmp_path / "out")


def test_the_outcome_lists_each_comparison_once(report: Path) -> None:
    frames = {
        name: entries.read_csv(report.parent.parent / "tables" / name / "table.csv")
        for name in ("wide", "fast", "again")
    }
    equal, other = pairs(frames)
    assert (equal.same_sampler, other.same_sampler) == (True, False)
    assert [names for _, names in equal.cases] == [["wide", "again"], ["wide", "again"]]
    assert equal.counts("FID") == {"better": 2, "within spread": 0, "worse": 0, "one seed": 0}
    assert other.counts("FID")["worse"] == 1
    text = report.read_text()
    assert "ADM-IP against ADM</h3>" in text
    assert "ADM-IP against ADM, with different samplers" in text
    assert "worse 1" in text


def test_the_report_has_the_same_bytes_again(report: Path, tmp_path: Path) -> None:
    study = Study("One", ["digits"], {"default": [0]}, {}, {})
    for name in ("x", "y"):
        pages.run("one", study, {}, {}, [], tmp_path / name)
    assert (tmp_path / "x/index.html").read_bytes() == (tmp_path / "y/index.html").read_bytes()
    assert "No table of this study compares" in (tmp_path / "x/index.html").read_text()


def test_a_missing_table_or_figure_is_named(tmp_path: Path) -> None:
    view = Table("t", ["fid"], ["model"], ["metric"], ["digits"], ["adm"], ["ancestral-10"])
    with pytest.raises(UserError, match="table 't' of the study was not given"):
        pages.run("s", Study("S", ["digits"], {"default": [0]}, {"t": view}), {}, {}, [], tmp_path)
    with pytest.raises(UserError, match=r"table\.csv"):
        pages.run("s", Study("S", ["digits"], {"default": [0]}, {"t": view}), {"t": tmp_path}, {}, [], tmp_path)
    with pytest.raises(UserError, match="expected a PNG"):
        pages.run("s", Study("S", ["digits"], {"default": [0]}, {}, {"f": LINES}), {}, {"f": tmp_path}, [], tmp_path)


def test_the_report_imports_no_torch() -> None:
    modules = "ipdiff.report.pages.report, ipdiff.report.figures.figure"
    code = f"import sys, {modules}; print({{'torch', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
