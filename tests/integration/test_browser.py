"""The report in a headless Chromium, as its reader has it: seen, clicked, typed, printed. Every number is SYNTHETIC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser
from unit.report_factory import recipes, write

from ipdiff.report.figures import figure
from ipdiff.report.pages import against, report
from ipdiff.report.spec import Figure, Study, Table
from ipdiff.report.tables import table

SEEDS, STEPS = (0, 1), (5, 10, 20, 50, 100)
SAMPLERS = [f"ancestral-{steps}" for steps in STEPS]
BOTH = ["adm", "adm-ip"]
TITLE = "A synthetic study with a title that is rather long for a telephone"
PAGES = ("index.html", "cards.html", "against.html")

CONTRAST = """
(() => {
  const channels = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (at) => {
    for (; at; at = at.parentElement) {
      const c = channels(getComputedStyle(at).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  const low = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.parentElement, style = getComputedStyle(at), ink = channels(style.color);
    if (!node.data.trim() || !at.getClientRects().length || ink[3] === 0 || at.closest("script, style")) continue;
    const [a, b] = [light(ink), light(behind(at))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.add(`${at.tagName}.${at.className}: ${node.data.trim().slice(0, 30)}`);
  }
  return [...low];
})()
"""
"""Texts of less contrast than WCAG's level AA asks of small ones."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One Chromium for all."""
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, its cards, and a page of differences."""
    root = tmp_path_factory.mktemp("study")
    runs = [(model, sampler, seed) for model in BOTH for sampler in SAMPLERS for seed in SEEDS]
    files = [
        write(
            root / f"{model}-{sampler}-{seed}.json",
            model=model,
            sampler=sampler,
            seed=seed,
            fid=3.0 + seed + len(model),
        )
        for model, sampler, seed in runs
    ]
    wide = Table("Wide", ["fid"], ["model"], ["sampler"], ["digits"], BOTH, SAMPLERS, compare={"adm-ip": "adm"})
    lines = Figure("lines", "FID over T'", ["digits"], BOTH, SAMPLERS)
    grid = Figure("samples", "Images from the same noise", ["digits"], BOTH, SAMPLERS[:2], images=16)
    study = Study(
        TITLE, ["digits"], {"default": list(SEEDS)}, {"wide": wide}, {"lines": lines, "grid": grid}, "A note. " * 40
    )
    gammas = {("digits", "adm"): (0.0,), ("digits", "adm-ip"): (0.1,)}
    table.run("wide", wide, files, root / "wide", gammas=gammas)
    figure.run("lines", lines, files, root / "lines", gammas=gammas)
    images: list[Path] = []
    for model, sampler, seed in runs:
        if sampler in grid.samplers:
            images.append(root / f"samples/digits/{model}/s{seed}/1000/{sampler}/samples.npz")
            images[-1].parent.mkdir(parents=True)
            np.savez(images[-1], arr_0=np.full((16, 8, 8, 1), 40 * seed, np.uint8))
    figure.run("grid", grid, images, root / "grid", gammas=gammas)
    behind = [recipe for model, sampler, seed in runs for recipe in recipes(model, sampler, seed)]
    drawn = {name: root / name for name in study.figures}
    out = root / "report/mini"
    report.run("mini", study, {"wide": root / "wide"}, drawn, behind, out, {"adm-ip": "adm"})
    at = [f"metrics/digits/{model}/s{seed}/1000/{sampler}" for model, sampler, seed in runs]
    now = {directory: {"fid": float(place)} for place, directory in enumerate(at)}
    against.run(TITLE, "a-branch-of-a-long-name" * 3, {**now, at[0]: {"fid": 7.0}}, now, 0, out)
    return out


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 768, 1280, 1600])
def test_no_page_is_wider_than_its_window(page: Page, folder: Path, name: str, width: int) -> None:
    page.open(folder / name, width)
    page.run("document.querySelectorAll('details').forEach((part) => part.open = true)")
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.errors == []
    wide = "[...document.querySelectorAll('body *')].filter((at) => at.getBoundingClientRect().right > innerWidth + 1)"
    assert page.run(f"{wide}.filter((at) => !at.closest('.scroll')).map((at) => at.outerHTML.slice(0, 80))") == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out(page: Page, folder: Path, name: str, theme: str) -> None:
    page.open(folder / name, 1280, theme=theme)
    assert page.run(CONTRAST) == []


def test_the_themes_are_two(page: Page, folder: Path) -> None:
    colours: list[str] = []
    for theme in ("light", "dark"):
        page.open(folder / "index.html", 1280, theme=theme)
        colours.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(set(colours)) == 2


def test_the_first_screen_is_the_result_the_figure_and_the_images(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280, 900)
    seen = "(at) => { const box = document.querySelector(at).getBoundingClientRect(); return box.top + box.height / 2 }"
    for at in (".numbers", "#figure-lines img", "#figure-grid .panel:not([hidden]) img"):
        assert page.run(f"({seen})({at!r})") < 900, at
    assert "9.50" in page.run("document.querySelector('.numbers').innerText")


def shown(page: Page) -> list[str]:
    """What the panels that are seen are of."""
    seen = "[...document.querySelectorAll('.panel')].filter((at) => at.checkVisibility())"
    return page.run(f"{seen}.map((at) => at.querySelector('figcaption').innerText)")


def test_images_are_chosen_by_mouse_and_by_keyboard(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280)
    assert shown(page) == ["T\u2032 = 5, training seed 0"]
    page.click(".choices fieldset:nth-of-type(1) label:nth-of-type(2)")
    assert shown(page) == ["T\u2032 = 10, training seed 0"]
    page.click(".choices fieldset:nth-of-type(2) label:nth-of-type(2)")
    assert shown(page) == ["T\u2032 = 10, training seed 1"]
    page.run("document.querySelector('.choices input:checked').focus()")
    page.press("ArrowLeft")
    assert shown(page) == ["T\u2032 = 5, training seed 1"]
    page.press("Tab")
    page.press("ArrowLeft")
    assert shown(page) == ["T\u2032 = 5, training seed 0"]
    sides = (
        "[...document.querySelectorAll('.panel:not([hidden]) img')].map((at) => [at.alt, at.getBoundingClientRect().x])"
    )
    (left, x), (right, further) = page.run(sides)
    assert ("without" in left, "without" in right, x < further) == (True, False, True)
    assert page.errors == []


def test_every_image_says_what_it_shows(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280)
    alts = page.run("[...document.images].map((at) => [at.alt, at.complete && at.naturalWidth > 0])")
    assert len(alts) == 1 + 2 * 2 * 2
    assert all(len(alt) > 5 and loaded for alt, loaded in alts)
    assert len({alt for alt, _ in alts}) == len(alts)


def test_a_number_leads_to_its_card(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280)
    page.click("a.number")
    page.wait("document.readyState == 'complete' && location.pathname.endsWith('cards.html')")
    card = page.run("document.querySelector('.card:target').id")
    assert card == "digits/adm/1000/ancestral-5"
    assert page.run("document.querySelector('.card:target').innerText").count("snakemake --cores all") == len(SEEDS)


def test_comparisons_are_folded_until_asked_for(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280)
    rows = "[...document.querySelectorAll('#outcome tbody tr')].filter((at) => at.checkVisibility()).length"
    assert page.run(rows) == 0
    page.run("document.querySelector('#outcome summary').focus()")
    page.press("Enter")
    assert page.run(rows) == len(SAMPLERS)


def test_a_wide_table_is_scrolled_by_keyboard(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 360)
    assert page.run("document.querySelector('#table-wide .scroll').tabIndex") == 0
    page.open(folder / "index.html", 1600)
    assert page.run("document.querySelector('#table-wide .scroll').hasAttribute('tabindex')") is False


def test_print_has_all_images_and_no_buttons(page: Page, folder: Path) -> None:
    page.open(folder / "index.html", 1280)
    page.emulate("light", "print")
    assert len(shown(page)) == 2 * len(SEEDS)
    assert page.run("document.querySelector('.choices').checkVisibility()") is False
    assert page.run("document.querySelector('.notes.print').open") is False
    page.emulate("light")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelector('.notes.print').open") is True
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("document.querySelector('.notes.print').open") is False
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_everything_is_there(page: Page, folder: Path) -> None:
    text = (folder / "index.html").read_text()
    start, _, rest = text.partition("<script>")
    (folder / "plain.html").write_text(start + rest.partition("</script>")[2])
    page.open(folder / "plain.html", 1280)
    assert len(shown(page)) == 2 * len(SEEDS)
    assert page.run("document.querySelector('.choices').checkVisibility()") is False
