"""What a survey of a user's pictures says is what `prepare` does with them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from unit.raw_data import prepared, refusal

from ipdiff.data import prepare
from ipdiff.data.readers.images import UnusableImages
from ipdiff.data.readers.survey import survey
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

ASKED = Source("folder", 16, 3, preprocessing="center-crop", modes="convert", raw="x")


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 24), kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").convert(mode).save(file, kind, **options)
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def turned() -> bytes:
    """20 wide and 30 high once its orientation is applied."""
    exif = Image.Exif()
    exif[274] = 6
    return picture(size=(30, 20), kind="JPEG", exif=exif)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    files = {
        "a/1.png": picture(),
        "a/2.png": picture("RGBA"),
        "a/3.jpg": picture("CMYK", kind="JPEG"),
        "a/4.png": picture("P"),
        "b/5.png": picture("L"),
        "b/6.jpg": turned(),
        "b/7.png": picture()[:60],
        "b/note.txt": b"x",
        "b/.hidden.png": picture(),
    }
    return fill(tmp_path / "raw", files)


def test_everything_is_counted_and_what_is_wrong_is_named(mixed: Path) -> None:
    found = survey(mixed, 16)
    assert found.usable == 6
    assert found.modes == {"RGB": 2, "RGBA": 1, "CMYK": 1, "P": 1, "L": 1}
    assert found.sizes == {(20, 24): 5, (20, 30): 1}
    assert found.passed_over == {".txt": 1, "hidden": 1}
    assert list(found.broken) == ["b/7.png"]
    assert "damaged" in found.broken["b/7.png"]
    assert found.refused == {}
    assert (found.labels, found.grey) == ({"a": 4, "b": 2}, 1)
    assert (found.channels, found.mixed, found.fits(16)) == (3, True, False)


def test_prepare_finds_the_same(mixed: Path, tmp_path: Path) -> None:
    found = survey(mixed, 16)
    source = replace(ASKED, raw=str(mixed), skip_broken=True, num_images=found.usable)
    (tmp_path / "out").mkdir()
    notes = prepare.run(source, tmp_path / "out", [mixed])
    assert notes["images"] == found.usable
    assert notes["broken"] == list(found.broken)
    assert notes["passed_over"] == found.passed_over
    assert notes["labels"] == list(found.labels)
    assert notes["converted"] == {mode: count for mode, count in found.modes.items() if mode != "RGB"}


def test_pictures_without_colour_are_one_channel(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", {"1.png": picture("L", (16, 16)), "2.png": picture("L", (16, 16))})
    found = survey(root, 16)
    assert (found.channels, found.mixed, found.fits(16), found.labels) == (1, False, True, {})
    prepared(Source("folder", 16, 1, raw=str(root)))
    fill(root, {"3.png": picture("1", (16, 16))})
    found = survey(root, 16)
    assert (found.channels, found.mixed) == (1, True)
    prepared(Source("folder", 16, 1, raw=str(root), modes="convert"))


def test_grey_pictures_that_are_stored_as_colour_are_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", {f"{i}.png": picture("L", (16, 16)) for i in range(4)})
    for name, mode in (("0.png", "RGB"), ("1.png", "RGBA"), ("2.png", "P")):
        Image.open(root / name).convert(mode).save(root / name)
    found = survey(root, 16)
    assert (found.channels, found.grey, found.usable) == (3, 4, 4)
    prepared(Source("folder", 16, 1, raw=str(root), modes="convert"))


def test_what_cannot_be_converted_is_told_from_what_cannot_be_read(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", {"1.png": picture(), "2.tif": picture("F", kind="TIFF"), "3.png": b""})
    found = survey(root, 16)
    assert (list(found.refused), list(found.broken)) == (["2.tif"], ["3.png"])
    assert "is F" in refusal(replace(ASKED, raw=str(root), skip_broken=True))


@pytest.mark.parametrize(
    ("files", "said"),
    [({"x.txt": b"x"}, "no images"), ({"x.png": b"", "y.png": b"x"}, "none of 2 images can be used; the first: x.png")],
)
def test_nothing_to_use_is_one_line(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(UserError, match=said):
        survey(fill(tmp_path / "raw", files), 16)


def test_pictures_beside_the_folders_are_refused_unless_there_are_no_labels(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", {"a/1.png": picture(), "b/2.png": picture(), "top.png": picture()})
    with pytest.raises(UnusableImages, match="top.png lies beside the folders"):
        survey(root, 16)
    assert survey(root, 16, "none").labels == {}
