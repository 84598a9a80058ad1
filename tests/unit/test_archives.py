"""The archives that tests are fed with."""

import subprocess
import sys
from pathlib import Path

from unit.tiny import files

SCRIPT = Path(__file__).parents[1] / "archives.py"
NAMES = [
    "Imagenet32_train_npz.zip",
    "cifar-10-binary.tar.gz",
    "cifar-10-python.tar.gz",
    "img_align_celeba.zip",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
    "thumbnails128x128.zip",
    "tower_train_lmdb.zip",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
]


def test_the_script_writes_the_same_bytes_each_time(tmp_path):
    for name in ("first", "second"):
        subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / name)], check=True)
    assert sorted(files(tmp_path / "first")) == NAMES
    assert files(tmp_path / "first") == files(tmp_path / "second")
