"""What is made of images of another size: OpenCV's and Pillow's rules.

golden/opencv_linear.npz: `cv2.resize(image, (s, s))` of opencv-python-headless 4.14.0, equal in 5.0.0.93, for
`image = numpy.random.default_rng(h).integers(0, 256, (h, w, 3), dtype=uint8)`, by the name HxW_S.
"""

from pathlib import Path

import numpy as np
import pytest
from archives import blobs
from PIL import Image

from ipdiff.data.formats.resize import PREPROCESS, linear
from ipdiff.data.spec import READERS

GOLDEN = Path(__file__).parents[2] / "parity" / "golden" / "opencv_linear.npz"


@pytest.mark.parametrize("name", ["218x178_64", "218x178_32", "50x40_64", "97x96_48"])
def test_linear_is_opencv_bit_for_bit(name):
    height, width, size = map(int, name.replace("_", "x").split("x"))
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with np.load(GOLDEN) as golden:
        np.testing.assert_array_equal(linear(image, size, size), golden[name])


def test_linear_by_hand():
    image = np.array([[0, 100]], np.uint8)[:, :, None]
    assert linear(image, 1, 4).ravel().tolist() == [0, 25, 75, 100]
    np.testing.assert_array_equal(linear(image, 1, 2), image)


def test_celeba_crop_is_the_faces_square():
    image = np.zeros((218, 178, 3), np.uint8)
    image[57:185, 25:153] = 255
    face = Image.fromarray(image)
    assert (PREPROCESS["crop128"](face, 128) == 255).all()
    image[57:185, 25:153] = np.arange(0, 256, 4).repeat(2)[:, None, None]
    rows = PREPROCESS["crop128"](Image.fromarray(image), 64)[1:-1, 30, 0]  # weights 1/8, 3/8, 3/8, 1/8: a line stays
    np.testing.assert_array_equal(rows, np.arange(4, 252, 4))


@pytest.mark.parametrize(("shape", "box"), [((64, 100), (18, 0, 82, 64)), ((101, 64), (0, 18, 64, 82))])
@pytest.mark.parametrize("rule", ["box-crop", "center-crop"])
def test_crops_of_the_right_shorter_side_only_crop(rule, shape, box):
    image = Image.fromarray(blobs(1, *shape, 3, seed=1)[0])
    np.testing.assert_array_equal(PREPROCESS[rule](image, 64), np.asarray(image.crop(box)))


def test_box_crop_averages_whole_blocks():
    tiles = blobs(1, 8, 12, 3, seed=2)[0]
    image = Image.fromarray(tiles.repeat(5, axis=0).repeat(5, axis=1))
    np.testing.assert_array_equal(PREPROCESS["box-crop"](image, 8), tiles[:, 2:10])


def test_center_crop_halves_before_it_is_bicubic():
    tiles = blobs(1, 16, 16, 3, seed=3)[0]
    image = Image.fromarray(tiles.repeat(4, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(PREPROCESS["center-crop"](image, 16), tiles)
    odd = Image.fromarray(blobs(1, 50, 67, 1, seed=4)[0, :, :, 0])
    halved = odd.resize((33, 25), Image.Resampling.BOX)
    expected = np.asarray(halved.resize((26, 20), Image.Resampling.BICUBIC))[:, 3:23]
    np.testing.assert_array_equal(PREPROCESS["center-crop"](odd, 20)[:, :, 0], expected)


def test_every_named_choice_exists():
    assert {name for kind in READERS.values() for name in kind.preprocessings} == set(PREPROCESS)
