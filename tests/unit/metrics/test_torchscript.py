"""Features of a network that the user names by its digest: what it gives, what it is called, what is not opened."""

import hashlib
import json
import re
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from unit.params_factory import put, small, write
from unit.report_factory import record

from ipdiff import cli
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.device.spec import Compute
from ipdiff.errors import ConfigError, IntegrityError, UserError
from ipdiff.metrics import fid, kid
from ipdiff.metrics.features.extractors import Network
from ipdiff.metrics.outside.compare import compare
from ipdiff.metrics.spec import TorchScript
from ipdiff.pipeline import config, grid
from ipdiff.report.results import aggregate, with_words
from ipdiff.report.spec import Table
from ipdiff.report.tables import entries, layout, notes

CPU = Compute()
RNG = np.random.default_rng(0)
PLAIN = {"image_size": 8, "resize": "bicubic", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "width": 5}


class Net(nn.Module):
    """A convolution, its mean over the image, and one feature that is the image's mean."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(nn.functional.conv2d(x, self.weight)).mean(dim=(2, 3))
        return torch.cat([maps, x.mean(dim=(1, 2, 3))[:, None]], dim=1)


class Normed(nn.Module):
    """Features that depend on the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.mean(dim=(2, 3))
        return torch.cat([rows - rows.mean(dim=0), rows[:, :2]], dim=1)


class Pair(nn.Module):
    """Two tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def trace(net, path, size=8):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net.eval(), torch.rand(2, 3, size, size)), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.pt"
    return {"path": str(path), "sha256": trace(Net(), path), **PLAIN}


def opened(settings):
    return Network("torchscript", None, TorchScript(**settings)).open(CPU)


def images(n, size=8, channels=3):
    return RNG.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def test_features_are_the_networks_own(net):
    found = images(9)
    got = opened({**net, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]})(found)
    x = torch.from_numpy(found).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    np.testing.assert_allclose(got["pool"], Net()(x).detach(), rtol=1e-4, atol=1e-5)
    assert got.keys() == {"pool", "pixel"}
    assert got["pool"].dtype == np.float32


def test_grey_images_are_repeated(net):
    grey = images(3, channels=1)
    extractor = opened(net)
    np.testing.assert_array_equal(extractor(grey)["pool"], extractor(np.repeat(grey, 3, axis=3))["pool"])


@pytest.mark.parametrize(("size", "resize"), [(24, "bicubic"), (24, "bilinear"), (5, "bicubic")])
def test_images_are_resized_as_pillow_does(net, size, resize):
    """But for Pillow's rounding to whole grey levels, after each of its two passes."""
    found = RNG.integers(60, 200, (4, size, size, 3), dtype=np.uint8)  # so that no pass reaches 0 or 255
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[resize]
    theirs = np.stack([np.array(Image.fromarray(one).resize((8, 8), method)) for one in found])
    extractor = opened({**net, "resize": resize})
    x = torch.from_numpy(found).permute(0, 3, 1, 2).float()
    ours = extractor._prepared(x).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(ours - theirs).max() < 1.5
    assert np.abs(ours - theirs).mean() < 0.5


def test_the_digest_names_the_file_and_what_is_made_of_images(net):
    one = opened(net)
    assert one.digest.startswith(net["sha256"] + "-")
    others = [{**net, **change} for change in ({"mean": [0.1] * 3}, {"image_size": 16}, {"resize": "bilinear"})]
    assert len({opened(other).digest for other in (net, *others)}) == 4
    assert opened({**net, "mean": [0] * 3, "std": [1] * 3}).digest == one.digest


def test_another_file_is_not_opened(net, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(IntegrityError, match=rf"net.pt: expected sha256 {'0' * 64}, found {net['sha256']}"):
        opened({**net, "sha256": "0" * 64})


def broken(folder):
    """Files that are no such network -> what is said of them."""
    write_to = {}
    for name, make in (("batch.pt", Normed()), ("pair.pt", Pair()), ("net.pt", Net())):
        write_to[name] = trace(make, folder / name)
    (folder / "text.pt").write_text("no network")
    torch.save({"a": torch.zeros(2)}, folder / "weights.pt")
    (folder / "torn.pt").write_bytes((folder / "net.pt").read_bytes()[:-200])
    for name in ("text.pt", "weights.pt", "torn.pt"):
        write_to[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return write_to


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("text.pt", {}, "is a text that begins with 'no network'; expected a feature network, a TorchScript file"),
        ("weights.pt", {}, "is a file of torch.save; expected a feature network, a TorchScript file"),
        ("torn.pt", {}, "is a damaged or truncated zip archive"),
        ("absent.pt", {}, "absent.pt is missing"),
        ("net.pt", {"width": 6}, r"gives torch.float32 \[3, 5\] for images \[3, 3, 8, 8\]; expected floats \[3, 6\]"),
        ("pair.pt", {}, "gives a tuple for images"),
        ("net.pt", {"image_size": 2}, r"cannot take images \[3, 3, 2, 2\] float32: "),
        ("batch.pt", {}, "an image's features depend on the batch that it is in"),
        ("net.pt", {"std": [1e-38] * 3}, "gives features that are not finite"),
    ],
)
def test_refusals_are_one_line(tmp_path, name, changes, said):
    digest = broken(tmp_path).get(name, "0" * 64)
    with pytest.raises(UserError, match=said) as error:
        opened({"path": str(tmp_path / name), "sha256": digest, **PLAIN, **changes})
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize("size", [8, 16])
def test_features_that_depend_on_the_batch_are_seen_at_every_size(tmp_path, size):
    """The three images differ at 16 too, whose square is a multiple of 256."""
    path = tmp_path / "batch.pt"
    digest = trace(Normed(), path, size)
    with pytest.raises(UserError, match="an image's features depend on the batch that it is in"):
        opened({**PLAIN, "path": str(path), "sha256": digest, "image_size": size})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "F" * 64}, "use 64 digits 0-9a-f"),
        ({"mean": [0.5]}, r"mean is \[0.5\]; use three numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "std has 0.0; use more than 0"),
        ({"resize": "nearest"}, "resize is nearest; use bicubic or bilinear"),
        ({"image_size": 0}, "image_size is 0; use 1..4096"),
        ({"image_size": 100_000}, "image_size is 100000; use 1..4096"),
    ],
)
def test_settings_that_name_no_network(net, changes, said):
    with pytest.raises(ValueError, match=said):
        TorchScript(**{**net, **changes})


# In a comparison


def test_distances_on_it(net):
    drawn, real = images(40), images(50)
    got = fid(drawn, real, features=TorchScript(**net))
    assert got["fid"] > 0
    assert (got["features"], got["dimensions"]) == ("torchscript", {"fid": 5})
    assert got["features_digest"].startswith(net["sha256"])
    assert kid(real, real, features=TorchScript(**net))["kid"] < 0  # the estimate without the equal pairs
    everything = compare(drawn, real, TorchScript(**net), CPU).values
    assert {"fid", "kid", "density", "precision", "pixel_fd"} <= everything.keys()
    assert not {"sfid", "inception_score"} & everything.keys()
    with pytest.raises(UserError, match=r"no sfid: both need mu_s and sigma_s, or images \(arr_0\) and a network with"):
        compare(drawn, real, TorchScript(**net), CPU, ["sfid"])


def test_on_the_command_line(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_npz(tmp_path / "a.npz", arr_0=images(30))
    save_npz(tmp_path / "b.npz", arr_0=images(30))

    def run(settings):
        (tmp_path / "net.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
        arguments = ["--features", "net.json", "--metrics", "fid", "--json", "--threads", "1"]
        code = cli.main(["evaluate", "a.npz", "--reference", "b.npz", *arguments])
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == (code != 0)
        assert len(said.err) < 300
        return code, said.err or json.loads(said.out)

    code, got = run(net)
    assert (code, got["features"]) == (0, "torchscript")
    for wrong, expected in (
        ({**net, "sha256": "0" * 64}, (3, "expected sha256 0000")),
        (
            {**net, "width": "5"},
            (2, "net.json: no settings of a TorchScript network: width is 5; expected a whole num"),
        ),
        ({**net, "mean": ["a", "b", "c"]}, (2, "mean is ['a', 'b', 'c']; expected three numbers")),
        ({**net, "mean": 0.5}, (2, "mean is 0.5; expected three numbers")),
        ({**net, "image_size": True}, (2, "image_size is True; expected a whole number")),
        ({"path": "x"}, (2, "expected an object with the keys path, sha256, image_size")),
        ("[1", (2, "no settings of a TorchScript network: ")),
    ):
        code, text = run(wrong)
        assert code == expected[0], text
        assert expected[1] in text


# In a study


@pytest.fixture
def study(net, tmp_path, monkeypatch):
    """A study whose features are the network's."""
    monkeypatch.chdir(tmp_path)
    raw = small()
    more = {"features": "torchscript", "torchscript": {**net}, "metrics": ["kid", "kid_se"]}
    raw["datasets"]["tiny"] |= {
        **more,
        "kid": {"subsets": 5, "subset_size": 20, "seed": 0},
        "reference": {"neighbours": True},
        "sampling": {"num_samples": 32, "batch_size": 32},
    }
    table = {**raw["tables"]["table3"], "metrics": ["fid", "kid", "kid_se", "pixel_fd"], "title": "T"}
    raw |= {"tables": {"table3": table}, "figures": {}, "seeds": {"default": [0]}}
    return raw


def test_a_study_measures_with_it_and_calls_it_by_its_name(study, net, tmp_path):
    write(tmp_path, study)
    cells = grid.load().study("small")
    measuring = next(cell for cell in cells if cell.stage.verb == "evaluate")
    assert "torchscript.sha256" in str(measuring.params)
    assert "torchscript.path" not in str(measuring.params)
    assert {"datasets.{dataset}.metrics", "datasets.{dataset}.kid"} <= set(measuring.stage.params)
    for cell in cells:
        assert cli.main(cell.command.split()[1:]) == 0, cell.command
    (path, *_) = tmp_path.glob("metrics/tiny/adm/**/metrics.json")
    found = with_words(json.loads(path.read_text()), path)
    assert {"fid", "kid", "kid_se", "pixel_fd", "precision"} <= found.keys()
    assert not {"sfid", "inception_score", "density"} & found.keys()
    assert not {"mu_s", "sigma_s"} & load_npz(tmp_path / "reference/tiny/stats.npz").keys()
    short = net["sha256"][:8] + found["features_digest"][64:]
    assert re.fullmatch("[0-9a-f]{8}-[0-9a-f]{8}", short)
    assert f"torchscript features ({short})" in (tmp_path / "tables/small/table3/table.md").read_text()
    for name in ("table.md", "table.tex"):
        text = (tmp_path / "tables/small/table3" / name).read_text()
        assert not re.search(r"\b(FID|KID)\b", text), text
        assert f"FD (torchscript:{short})" in text
        assert f"KD standard error (torchscript:{short})" in text
        assert f"FD (torchscript:{short}) 5, KD (torchscript:{short}) 5" in text
    page = (tmp_path / "report/small/index.html").read_text()
    assert f"FD (torchscript:{short})" in page
    assert "<b>FID</b>" not in page
    assert "KD standard error" not in page.partition("<h2")[2].partition("<table")[0]  # no comparison of errors


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tables.table3.metrics", ["sfid"], "tables.table3: sfid needs spatial features; datasets.tiny.features is"),
        ("datasets.tiny.metrics", ["sfid"], "datasets.tiny.metrics: sfid needs spatial features; datasets.tiny.feat"),
        ("datasets.tiny.reference", {}, "datasets.tiny.metrics: kid needs datasets.tiny.reference.neighbours: true"),
        ("datasets.tiny.torchscript", None, "features is torchscript, which needs the key torchscript: path, sha256"),
        ("datasets.tiny.torchscript.sha256", "abc", "sha256 is 'abc'; use 64 digits 0-9a-f"),
        ("datasets.tiny.torchscript.resize", "box", "found 'box'; expected bicubic or bilinear"),
        (
            "datasets.tiny.kid.subset_size",
            64,
            "kid_se needs more images than datasets.tiny.kid.subset_size, 64; 32 are drawn and 64 are real",
        ),
        ("datasets.tiny.metrics", ["kid"], "tables.table3: kid_se is measured where datasets.tiny.metrics names it"),
    ],
)
def test_a_study_that_asks_for_what_is_not_there(study, tmp_path, key, value, said):
    path = write(tmp_path, put(study, key, value))
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        config.load(path)
    assert len(str(error.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("size", "images", "fits"), [(63, None, True), (32, 20, False), (31, 20, True), (32, 33, True)]
)
def test_one_set_above_the_subsets_size_has_a_standard_error(study, tmp_path, size, images, fits):
    put(study, "datasets.tiny.reference.images", images)
    path = write(tmp_path, put(study, "datasets.tiny.kid.subset_size", size))
    with nullcontext() if fits else pytest.raises(ConfigError, match=f"kid_se needs more images .* {size}; 32 are"):
        config.load(path)


def test_a_standard_error_is_neither_better_nor_worse():
    """It is shown as it is: no bold, no verdict, no word in the sentence that says which way is better."""
    made = [
        entries.value(one, metric, None)
        for model, error in (("adm", 0.2), ("adm-ip", 0.1))
        for one in aggregate(
            record(
                model=model, seed=seed, kid=0.5 - error, kid_se=error, dimensions={"kid": 64, "kid_se": 64, "fid": 7}
            )
            for seed in (0, 1)
        )
        for metric in ("kid", "kid_se")
    ]
    table = Table("t", ["kid", "kid_se"], ["model"], ["metric"], ["digits"], ["adm", "adm-ip"], ["ancestral-100"])
    (panel,) = layout.panels(table, made)
    assert [[cell.best for cell in row.cells if cell] for row in panel.rows] == [[True, False], [False, False]]
    said = " ".join(notes.write(table, made, None))
    assert "Lower is better. Bold: the lowest mean" in said
    assert "Features of an image that are compared: KID 64." in said
    assert not any(entry.verdict for entry in made)
    pair = [replace(one, baseline="adm", values=(0.1,), seeds=(0,)) for one in made[2:]]
    assert [entry.verdict for entry in pair] == ["one seed", ""]
