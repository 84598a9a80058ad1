"""Reference statistics and metrics.json: content, equal bytes, sensitivity, refusals."""

import json

import numpy as np
import pytest

from ipdiff import classifier, evaluate, prepare, reference
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.errors import UserError
from ipdiff.spec import Classifier, Compute, Source

SPEC, CPU = Classifier(steps=60, width=16), Compute()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A directory with the digits, a classifier and the reference statistics."""
    out = tmp_path_factory.mktemp("pipeline")
    prepare.run(Source("digits", 8, 1), out)
    classifier.run(SPEC, CPU, out / "images.npy", out / "labels.npy", out)
    reference.run(SPEC, CPU, out / "images.npy", out / "classifier.safetensors", out)
    return out


@pytest.fixture(scope="module")
def images(pipeline):
    return np.load(pipeline / "images.npy")


def measure(pipeline, tmp_path, samples, about=None):
    save_npz(tmp_path / "samples.npz", arr_0=samples)
    evaluate.run(
        SPEC,
        CPU,
        tmp_path / "samples.npz",
        pipeline / "stats.npz",
        pipeline / "classifier.safetensors",
        about or {},
        tmp_path,
    )
    return json.loads((tmp_path / "metrics.json").read_text())


def test_reference_has_equal_bytes_and_the_evaluators_names(pipeline, tmp_path):
    reference.run(SPEC, CPU, pipeline / "images.npy", pipeline / "classifier.safetensors", tmp_path)
    assert (tmp_path / "stats.npz").read_bytes() == (pipeline / "stats.npz").read_bytes()
    stats = load_npz(pipeline / "stats.npz")
    assert {name: stats[name].shape for name in ("mu", "sigma", "mu_s", "sigma_s")} == {
        "mu": (64,),
        "sigma": (64, 64),
        "mu_s": (448,),
        "sigma_s": (448, 448),
    }
    assert int(stats["n"]) == 1797


def test_the_data_itself_is_at_distance_zero(pipeline, images, tmp_path):
    got = measure(pipeline, tmp_path, images)
    assert max(got["fid"], got["sfid"], got["pixel_fd"]) < 1e-8


def test_metrics_carry_what_they_are(pipeline, images, tmp_path):
    about = {"seed": 0, "model": "adm-ip", "nfe": 100}
    got = measure(pipeline, tmp_path, images[:500], about)
    assert set(got) == {"fid", "sfid", "pixel_fd", "n", "reference_n", "features", "seed", "model", "nfe"}
    assert (got["n"], got["reference_n"], got["features"], got["model"]) == (
        500,
        1797,
        "classifier",
        "adm-ip",
    )
    text = (tmp_path / "metrics.json").read_text()
    assert text == json.dumps(got, indent=1, sort_keys=True) + "\n"
    assert all(float(f"{got[name]:.10g}") == got[name] for name in ("fid", "sfid", "pixel_fd"))
    measure(pipeline, tmp_path, images[:500], about)
    assert (tmp_path / "metrics.json").read_text() == text
    with pytest.raises(ValueError, match=r"about holds \['fid'\]"):
        measure(pipeline, tmp_path, images[:500], {"fid": 1.0})


def test_noisier_images_are_farther(pipeline, images, tmp_path):
    noise = np.random.default_rng(0).standard_normal(images.shape) * 127.5
    rows = [
        measure(pipeline, tmp_path, np.clip(np.rint(images + sigma * noise), 0, 255).astype(np.uint8))
        for sigma in (0, 0.02, 0.05, 0.1, 0.3)
    ]
    for metric in ("fid", "sfid", "pixel_fd"):
        values = [row[metric] for row in rows]
        assert values == sorted(values)
        assert values[-1] > 10 * values[1]


def test_refusals(pipeline, images, tmp_path):
    with pytest.raises(UserError, match="2 images or more; got 1"):
        measure(pipeline, tmp_path, images[:1])
    with pytest.raises(UserError, match=r"are \[4, 4, 1\] \[H, W, C\]; the reference's are \[8, 8, 1\]"):
        measure(pipeline, tmp_path, images[:, :4, :4])
    with pytest.raises(UserError, match=r"expected images uint8 \[N, H, W, C\], found float32"):
        measure(pipeline, tmp_path, images.astype(np.float32))
    save_npz(tmp_path / "other.npz", x=images)
    with pytest.raises(UserError, match="expected the array arr_0, found x"):
        evaluate.run(
            SPEC,
            CPU,
            tmp_path / "other.npz",
            pipeline / "stats.npz",
            pipeline / "classifier.safetensors",
            {},
            tmp_path,
        )
    with pytest.raises(UserError, match="not statistics of the stage `reference`"):
        evaluate.run(
            SPEC,
            CPU,
            tmp_path / "other.npz",
            tmp_path / "other.npz",
            pipeline / "classifier.safetensors",
            {},
            tmp_path,
        )
