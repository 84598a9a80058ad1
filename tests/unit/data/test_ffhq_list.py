"""FFHQ's images against the published list of their pixels, one of the same form."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, write_zip
from unit import params_factory
from unit.params_factory import put

from ipdiff import cli
from ipdiff.data.formats import ffhq_list
from ipdiff.errors import IntegrityError, UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)


def entry(number: int) -> dict[str, object]:
    """What the list says of an image: more than is needed."""
    return {
        "category": "training",
        "metadata": {"photo_title": 'a "thumbnail": {', "license": "CC"},
        "image": {"file_path": f"images1024x1024/00000/{number:05d}.png", "pixel_md5": "0" * 32},
        "thumbnail": {
            "file_path": f"thumbnails128x128/00000/{number:05d}.png",
            "file_md5": "1" * 32,
            "pixel_size": [128, 128],
            "pixel_md5": hashlib.md5(IMAGES[number].tobytes()).hexdigest(),
        },
        "in_the_wild": {"face_landmarks": [[1.5, 2.5]] * 68},
    }


def write_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of these images, whose digest counts as the published one's."""
    text = json.dumps({str(number): entry(number) for number in range(3)}, indent=1)
    (path := folder / ffhq_list.NAME).write_text(text)
    monkeypatch.setattr(ffhq_list, "MD5", hashlib.md5(text.encode()).hexdigest())
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_list(tmp_path, monkeypatch)


def test_images_as_they_are_published(path: Path) -> None:
    assert sorted(ffhq_list.pixel_digests(path)) == [0, 1, 2]
    ffhq_list.check(IMAGES, path)
    ffhq_list.check(IMAGES[:2], path)


def test_one_pixel_makes_another_image(path: Path) -> None:
    images = IMAGES.copy()
    images[1, 5, 7, 2] ^= 1
    with pytest.raises(IntegrityError, match="image 00001.png: expected pixel md5"):
        ffhq_list.check(images, path)
    with pytest.raises(IntegrityError, match="image 00000.png"):
        ffhq_list.check(IMAGES[[1, 0, 2]], path)
    with pytest.raises(IntegrityError, match="image 00003.png: expected pixel md5 none: it is not in the list"):
        ffhq_list.check(np.concatenate([IMAGES, IMAGES[:1]]), path)


def test_another_list_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_text(path.read_text() + " ")
    with pytest.raises(IntegrityError, match=ffhq_list.MD5):
        ffhq_list.pixel_digests(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ffhq_list.pixel_digests(tmp_path / "absent.json")


def test_the_digest_is_of_all_pixels_in_their_order() -> None:
    assert ffhq_list.digest(IMAGES) == hashlib.sha256(IMAGES.tobytes()).hexdigest()
    assert ffhq_list.digest(IMAGES[::-1]) != ffhq_list.digest(IMAGES)


def test_prepare_says_the_digest_and_holds_the_images_against_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IPDIFF_RAW", raising=False)
    raw = params_factory.small()
    archive = "thumbnails128x128.zip"
    source = {"reader": "ffhq", "image_size": 128, "channels": 3, "archives": {archive: None}}
    put(put(raw, "datasets.photos.source", source), "downloads", {archive: {"how": "Ask."}})
    params_factory.write(tmp_path, raw)
    (tmp_path / "raw").mkdir()
    write_zip(
        tmp_path / "raw" / archive,
        [(f"thumbnails128x128/00000/{i:05d}.png", encoded(image, "PNG")) for i, image in enumerate(IMAGES)],
    )

    def prepared() -> tuple[int, str]:
        shutil.rmtree("data", ignore_errors=True)
        code = cli.main(["prepare", "--dataset", "photos"])
        return code, capsys.readouterr().err

    code, said = prepared()
    assert code == 0
    assert f"3 images, sha256 of their pixels {ffhq_list.digest(IMAGES)}; none was held against" in said
    write_list(tmp_path / "raw", monkeypatch)
    code, said = prepared()
    assert code == 0
    assert "each is as raw/ffhq-dataset-v2.json says" in said
    IMAGES[2, 0, 0, 0] ^= 1
    write_list(tmp_path / "raw", monkeypatch)
    IMAGES[2, 0, 0, 0] ^= 1
    code, said = prepared()
    assert code == 3
    assert "image 00002.png: expected pixel md5" in said
    assert not (tmp_path / "data/photos").exists()
