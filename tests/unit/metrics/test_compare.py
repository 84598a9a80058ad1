"""`ipdiff evaluate SAMPLES --reference FILE`: what it measures, as whom, and what it refuses in one line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from inception import write_inception
from unit.params_factory import small, write

from ipdiff import cli
from ipdiff.data.arrays import save_npz
from ipdiff.device.spec import Compute
from ipdiff.metrics import evaluate
from ipdiff.metrics.features.extractors import Network
from ipdiff.metrics.spec import Inception

CPU = Compute()
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets of images in every form, and a network."""
    out = tmp_path_factory.mktemp("files")
    extractor = Network("inception", write_inception(out / "net.pt", seed=1), Inception(raw="net.pt")).open(CPU)
    real = RNG.integers(0, 80, (24, 8, 8, 3), dtype=np.uint8)
    drawn = RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    for name, images in (("real", real), ("drawn", drawn)):
        stats = evaluate.measure(extractor, images).statistics
        adm = {key: stats[key] for key in ("mu", "sigma", "mu_s", "sigma_s")}
        save_npz(out / f"{name}_images.npz", arr_0=images)
        np.savez_compressed(out / f"{name}_adm.npz", arr_0=images, **adm)
        save_npz(out / f"{name}_adm_stats.npz", **adm)
        save_npz(out / f"{name}_stats.npz", **stats)
        np.save(out / f"{name}.npy", images)
    return out


@pytest.fixture
def compare(folder, capsys, monkeypatch):
    """Run the command with names of files; returns exit code and what it printed."""
    monkeypatch.chdir(folder)

    def run(samples, reference, *options):
        options = options if "--features" in options else (*options, "--features", "net.pt")
        code = cli.main(["evaluate", samples, "--reference", reference, "--threads", "1", *options])
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert all(line.startswith("ipdiff: warning: ") for line in lines[: len(lines) - (code != 0)])
        assert code == 0 or len(lines) == 1
        assert len(said.err) <= 300
        return code, said.out if code == 0 else said.err

    return run


def test_every_form_of_file_gives_the_same_distance(compare):
    found = {}
    for samples in ("drawn_images.npz", "drawn_adm.npz", "drawn.npy", "drawn_stats.npz", "drawn_adm_stats.npz"):
        for reference in ("real_images.npz", "real_adm.npz", "real_adm_stats.npz", "real_stats.npz"):
            code, text = compare(samples, reference, "--json", "--metrics", "fid")
            assert code == 0, text
            found[samples, reference] = json.loads(text)
    first = found["drawn_images.npz", "real_images.npz"]
    assert first["fid"] > 1e-5
    for got in found.values():
        assert got["fid"] == first["fid"]
        assert got["features"] in ("other inception", None)
    assert (first["n"], first["reference_n"]) == (20, 24)
    assert found["drawn_adm_stats.npz", "real_adm_stats.npz"]["n"] is None


def test_everything_that_the_files_permit(compare):
    code, text = compare("drawn_adm.npz", "real_adm.npz", "--json")
    assert code == 0, text
    got = json.loads(text)
    assert list(got) == [
        *("fid", "sfid", "pixel_fd", "inception_score", "precision", "recall", "kid", "density", "coverage"),
        *("dimensions", "features", "features_digest", "n", "reference_n"),
    ]
    assert got["dimensions"] == {
        "fid": 64, "sfid": 2023, "pixel_fd": 192,
        **dict.fromkeys(("precision", "recall", "kid", "density", "coverage"), 64),
    }  # fmt: skip
    assert got["inception_score"] > 1
    assert 0 <= got["precision"] <= 1
    stats_only = json.loads(compare("drawn_adm.npz", "real_adm_stats.npz", "--json")[1])
    assert {"fid", "sfid", "inception_score"} <= stats_only.keys()
    assert not {"pixel_fd", "precision", "recall"} & stats_only.keys()
    lines = compare("drawn_adm.npz", "real_adm.npz", "--metrics", "fid")[1].splitlines()
    assert lines[0].split() == ["fid", str(got["fid"])]
    assert lines[1].split() == ["dimensions", "fid", "64"]
    assert [line.split()[0] for line in lines[2:]] == ["features", "features_digest", "n", "reference_n"]


def test_statistics_are_used_as_they_are(compare, folder):
    """Where a file has statistics and images, FID is that of the statistics, as in the official evaluator."""
    with np.load(folder / "real_adm.npz") as file:
        arrays = dict(file)
    save_npz(folder / "moved.npz", **{**arrays, "mu": arrays["mu"] + 1})
    got = json.loads(compare("drawn_images.npz", "moved.npz", "--json", "--metrics", "fid")[1])
    plain = json.loads(compare("drawn_images.npz", "real_adm.npz", "--json", "--metrics", "fid")[1])
    assert abs(got["fid"] - plain["fid"]) > 1


def test_statistics_need_no_network(compare):
    code, text = compare("drawn_stats.npz", "real_stats.npz", "--features", "nowhere.pt", "--metrics", "pixel_fd,fid")
    assert code == 0, text
    code, text = compare("drawn_images.npz", "real_stats.npz", "--features", "nowhere.pt")
    assert (code, text) == (
        2,
        "ipdiff: features 'nowhere.pt': no such file; use inception or pixels, or a path of a network\n",
    )


@pytest.mark.parametrize(
    ("samples", "reference", "options", "said"),
    [
        ("drawn_images.npz", "small.npz", (), "images are [8, 8, 3] [H, W, C]; those of small.npz are [4, 4, 3]"),
        (
            "drawn_images.npz",
            "none.npz",
            (),
            "or statistics (mu, sigma, mu_s, sigma_s), an npy of images, or a folder or zip of them; found x",
        ),
        ("drawn_images.npz", "absent.npz", (), "absent.npz is missing"),
        ("drawn_images.npz", "float.npz", (), "float.npz: expected images uint8 [N, H, W, C], found float32"),
        ("drawn_adm_stats.npz", "few.npz", (), "fid of samples (1) and reference (2) cannot be taken: mu1 has 64 dim"),
        ("drawn_images.npz", "other.npz", (), "of different features: other inception 00 and other inception "),
        ("drawn_adm_stats.npz", "real_images.npz", ("--metrics", "recall"), "no recall: it needs the images of both"),
        ("drawn_adm_stats.npz", "real_stats.npz", ("--metrics", "pixel_fd"), "no pixel_fd: both need mu_pixel and "),
        ("drawn_images.npz", "real_images.npz", ("--metrics", "fd"), "--metrics: no metric 'fd'; known: fid, sfid"),
        ("one.npz", "real_images.npz", (), "a Frechet distance needs 2 images or more; got 1"),
        (
            "drawn_images.npz",
            "pickled.npz",
            (),
            "pickled.npz: arr_0.npy: cannot be read: holds Python objects (a pickle)",
        ),
        (
            "drawn_images.npz",
            "real_images.npz",
            ("--device", "cuda"),
            "is cuda, but torch finds no CUDA",
        ),
        ("drawn_images.npz", "real_images.npz", ("--threads", "0"), "threads is 0; use 1..1024"),
        ("drawn_images.npz", "real_images.npz", ("--threads", "5000"), "threads is 5000; use 1..1024"),
        (
            "drawn_images.npz",
            "real_images.npz",
            ("--metrics", "kid_se"),
            "one of the sets must have more images than kid.s",
        ),
        (
            "drawn_images.npz",
            "real_images.npz",
            ("--features", "deep.json"),
            "deep.json: no settings of a TorchScript ",
        ),
    ],
)
def test_refusals(compare, folder, samples, reference, options, said):
    images = np.zeros((6, 8, 8, 3), np.uint8)
    (folder / "deep.json").write_text("[" * 100_000)
    save_npz(folder / "small.npz", arr_0=images[:, :4, :4])
    save_npz(folder / "none.npz", x=images)
    save_npz(folder / "float.npz", arr_0=images.astype(np.float32))
    save_npz(folder / "few.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    save_npz(folder / "one.npz", arr_0=images[:1])
    np.savez(folder / "pickled.npz", arr_0=np.array([{}], dtype=object))
    with np.load(folder / "real_stats.npz") as file:
        save_npz(folder / "other.npz", **{**file, "features": np.array("other inception 00")})
    code, text = compare(samples, reference, *options)
    assert code == 2
    assert said in text


def test_another_inception_file_is_a_choice_that_the_output_names(compare, folder):
    write_inception(folder / "other.pt", seed=2)
    code, text = compare("drawn_images.npz", "real_images.npz", "--features", "other.pt", "--json")
    assert code == 0, text
    digest = hashlib.sha256(Path("other.pt").read_bytes()).hexdigest()
    assert (json.loads(text)["features"], json.loads(text)["features_digest"]) == ("other inception", digest)
    first = json.loads(compare("drawn_images.npz", "real_images.npz", "--json")[1])
    assert first["fid"] != json.loads(text)["fid"]


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_a_program_that_is_no_inception_is_refused(compare, folder):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "linear.pt")
    code, text = compare("drawn_images.npz", "real_images.npz", "--features", "linear.pt")
    assert code == 2
    assert "linear.pt: not the Inception network of 2015-12-05" in text


def test_pixels_need_no_network(compare, folder, monkeypatch):
    monkeypatch.setenv("IPDIFF_INCEPTION", "nowhere.pt")
    code, text = compare(
        "drawn_images.npz", "real_images.npz", "--features", "inception", "--metrics", "pixel_fd", "--json"
    )
    assert code == 0, text
    got = json.loads(text)
    assert "features" not in compare("drawn_images.npz", "real_images.npz", "--metrics", "pixel_fd")[1]
    whole = json.loads(compare("drawn_images.npz", "real_images.npz", "--json")[1])
    assert got["pixel_fd"] == pytest.approx(whole["pixel_fd"], rel=1e-9)
    assert (got["features"], got["features_digest"], got["dimensions"]) == (None, None, {"pixel_fd": 192})
    code, text = compare("drawn_images.npz", "real_stats.npz", "--metrics", "pixel_fd", "--json")  # another's features
    assert json.loads(text)["pixel_fd"] == pytest.approx(whole["pixel_fd"], rel=1e-9)


def test_the_published_network_is_what_inception_means(compare, folder, monkeypatch):
    monkeypatch.setenv("IPDIFF_INCEPTION", str(folder / "net.pt"))
    code, text = compare("drawn_images.npz", "real_images.npz", "--features", "inception")
    assert code == 3
    assert "expected sha256 f58cb9b6" in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["x.npz"], "SAMPLES needs --reference FILE"),
        (["x.npz", "--reference", "y.npz", "--model", "adm"], "--model names a cell of the grid; leave it out"),
        (["--dataset", "tiny"], "needs --model, --seed, --step, --sampler, or SAMPLES --reference FILE"),
        (["--dataset", "tiny", "--json"], "--json goes with a file of samples"),
        ([], "needs --dataset, --model, --seed, --step, --sampler, or SAMPLES --reference FILE"),
    ],
)
def test_one_form_or_the_other(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, small())
    assert cli.main(["evaluate", *argv]) == 2
    assert said in capsys.readouterr().err


def test_a_classifier_of_the_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, small())
    for verb in ("prepare", "classifier", "reference"):
        assert cli.main([verb, "--dataset", "tiny"]) == 0
    capsys.readouterr()
    stats, net = "reference/tiny/stats.npz", "features/tiny/classifier.safetensors"
    assert cli.main(["evaluate", "data/tiny/images.npy", "--reference", stats, "--features", net, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert max(got["fid"], got["sfid"], got["pixel_fd"]) < 1e-8
    assert (got["features"], got["n"], got["reference_n"]) == ("classifier", 64, 64)
    assert "inception_score" not in got
