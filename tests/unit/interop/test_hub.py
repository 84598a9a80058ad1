"""An exported pipeline draws our images, its card says what its recipe says, and the Hub gets these files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from unit.params_factory import small, write
from unit.tiny import ADM, DDIM, change

from ipdiff import cli
from ipdiff.nets import build
from ipdiff.pipeline.store import artifact
from ipdiff.samplers import ancestral, ddim
from ipdiff.schedule import respace
from ipdiff.spec import RunSpec
from ipdiff.work.files import md5_of

ROOT = Path(__file__).parents[3]
FILES = {
    *("README.md", "config.json", "diffusion_pytorch_model.safetensors", "model_index.json", "scheduler_config.json")
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one study; no token, and no Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    write(tmp_path, small())
    return tmp_path


def trained(spec: RunSpec, model: str = "adm") -> dict[str, Tensor]:
    """A checkpoint of this run, whose network says something of order one."""
    torch.manual_seed(0)
    state = build.network(spec).state_dict()
    for value in state.values():
        torch.nn.init.normal_(value, std=0.3)
    folder = Path(f"runs/tiny/{model}/s0/8")
    recipe = {"cell": str(folder), "stage": "train", "run": spec.to_json(), "code": "c0de", "inputs": {}}
    recipe["inputs"] = {"data/tiny/images.npy": "d1ce"}
    with artifact.publishing(folder, ("ema.safetensors",), recipe) as made:
        save_file(state, made.staging / "ema.safetensors")
    return state


@pytest.mark.parametrize(
    ("spec", "steps", "grid"),
    [
        (change(ADM, learn_sigma=True, T=100, gamma=0.1), 10, "10"),
        (change(ADM, fixed_variance="large", T=100, target="v"), 10, "10"),
        (change(DDIM, T=100), 10, "uniform10"),
    ],
)
def test_the_pipeline_of_diffusers_draws_our_images(spec: RunSpec, steps: int, grid: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pipelines were not compared")
    model = "ddim" if spec.family == "ddpm" else "adm"
    state = trained(spec, model)
    assert cli.main(["export", f"tiny/{model}", "--format", "diffusers", "--to", "net"]) == 0
    kind = diffusers.DDIMPipeline if model == "ddim" else diffusers.DDPMPipeline
    pipeline = kind.from_pretrained("net")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    theirs = pipeline(3, generator=generator, num_inference_steps=steps, output_type="np").images

    net = build.network(spec)
    net.load_state_dict(state)
    generator = torch.Generator().manual_seed(4)
    shape = (3, 1, 4, 4)
    x = torch.randn(shape, generator=generator)
    process = build.diffusion(spec, respace(100, grid))
    chain, options = (ddim, {"clip_denoised": False}) if model == "ddim" else (ancestral, {})
    with torch.inference_mode():
        found = chain(process, net.eval(), x, lambda i: torch.randn(shape, generator=generator), **options)
    ours = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert ours.std() > 0.1
    assert abs(ours - theirs).max() < 2e-4


def measured(sampler: str, weights: str, **found: Any) -> None:
    """A sample set and its metrics, as the stages leave them."""
    run = "tiny/adm/s0/8"
    with artifact.publishing(
        Path(f"samples/{run}/{sampler}"),
        ("samples.npz",),
        {"cell": "", "stage": "sample", "inputs": {f"runs/{run}/ema.safetensors": weights}},
    ) as made:
        (made.staging / "samples.npz").write_bytes(b"images")
    with artifact.publishing(
        Path(f"metrics/{run}/{sampler}"), ("metrics.json",), {"cell": "", "stage": "evaluate", "inputs": {}}
    ) as made:
        made.extra = {"measured": {"sampler": sampler, "features": "classifier", "features_digest": "0"}}
        (made.staging / "metrics.json").write_text(json.dumps({"nfe": 5, "n": 64, "reference_n": 60, **found}))


def exported_card(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str, str]:
    assert cli.main(["export", "tiny/adm", "--format", "diffusers", "--to", "net"]) == 0
    _, head, text = Path("net/README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text, capsys.readouterr().err


def test_the_card_says_what_the_recipe_says(capsys: pytest.CaptureFixture[str]) -> None:
    trained(change(ADM, gamma=0.15))
    weights = md5_of(Path("runs/tiny/adm/s0/8/ema.safetensors"))
    measured("ancestral-20", weights, fid=3.14159, sfid=2.0)
    measured("ancestral-5", weights, fid=31.4159, precision=0.5)
    measured("exposure-5", weights, fid=1.0)
    measured("ddim0-5", "0" * 32, fid=77.0)  # of weights that were here before
    head, text, said = exported_card(capsys)
    assert head["library_name"] == "diffusers"
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "fill-in", "fill-in")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts["input perturbation gamma"] == "0.15"
    assert facts["data set"] == "tiny, images md5 d1ce"
    assert facts["training"].startswith("8 updates of 8 images")
    assert weights in facts["weights"]
    assert "code c0de" in facts["made by"]
    table = [row for row in rows if len(row) == 8]
    assert table[0] == ["sampler", "network calls", "N", "N of the reference", "features", "FID", "precision", "sFID"]
    assert table[2:] == [
        ["ancestral-5", "5", "64", "60", "classifier", "31.42", "0.500", ""],
        ["ancestral-20", "5", "64", "60", "classifier", "3.14", "", "2.00"],
    ]
    assert said == "ddim0-5: its metrics are left out, for nothing says that they are of these weights\n"
    assert "num_inference_steps=20" in text
    assert "__" not in text


def test_a_card_without_metrics_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    trained(change(ADM, gamma=0.15, target="eps_prime"))
    _, text, said = exported_card(capsys)
    assert "Nothing, of these weights." in text
    assert said.strip() in text.replace(".\n", "\n")  # what the scheduler cannot say


def test_metrics_that_were_changed_stop_the_export(capsys: pytest.CaptureFixture[str]) -> None:
    trained(ADM)
    measured("ancestral-5", md5_of(Path("runs/tiny/adm/s0/8/ema.safetensors")), fid=31.4)
    path = Path("metrics/tiny/adm/s0/8/ancestral-5/metrics.json")
    path.write_text(path.read_text().replace("31.4", "13.4"))
    assert cli.main(["export", "tiny/adm", "--format", "diffusers", "--to", "net"]) == 3
    assert "metrics.json" in capsys.readouterr().err
    assert not Path("net").exists()


# The Hub: a server that speaks its API


@dataclass
class Stub:
    """What arrived: repositories with whether they are private, files of commits, and the tokens that were shown."""

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    refuse: str = ""
    url: str = ""


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The endpoints that an upload of a folder needs."""
    state = Stub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, data: object, code: int = 200) -> None:
            text = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_PUT(self) -> None:
            data = self.body()
            state.large[hashlib.sha256(data).hexdigest()] = data
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"error": "not here"}, 404)

        def do_POST(self) -> None:
            state.tokens.add(self.headers.get("Authorization", ""))
            data, path = self.body(), self.path.partition("?")[0]
            if state.refuse and state.refuse in path:
                self.answer({"error": "You don't have the rights"}, 403)
            elif path == "/api/repos/create":
                asked = json.loads(data)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                state.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
                self.answer({"url": f"{state.url}/{name}"})
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = json.loads(data)["files"]
                kinds = {True: "lfs", False: "regular"}
                modes = [
                    {"path": one["path"], "uploadMode": kinds[one["path"].endswith("tensors")], "shouldIgnore": False}
                    for one in files
                ]
                self.answer({"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(data)["objects"]
                for one in objects:
                    one["actions"] = {"upload": {"href": f"{state.url}/large/{one['oid']}"}}
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in path:
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        state.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        state.files[value["path"]] = state.large[value["oid"]]
                self.answer({"commitUrl": f"{state.url}/me/ip/commit/1", "commitOid": "1"})
            else:
                self.answer({"error": path}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def push(url: str, to: str = "net") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the library reads its environment when it is imported."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "ipdiff", "export", "tiny/adm", "--format", "diffusers", "--to", to]
    return subprocess.run([*command, "--push", "me/ip"], env=environment, capture_output=True, text=True, timeout=600)


def test_the_hub_gets_the_files(stub: Stub, project: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: nothing was pushed")
    trained(ADM)
    done = push(stub.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "net\n"
    assert f"pushed to {stub.url}/me/ip/commit/1, private if it was not there: fill in README.md" in done.stderr
    assert stub.private == {"me/ip": True}
    assert stub.tokens == {"Bearer hf_secret"}
    assert stub.files == {path.name: path.read_bytes() for path in Path("net").iterdir()}
    assert set(stub.files) == FILES
    stub.refuse = "/preupload/"
    done = push(stub.url, "again")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("ipdiff: me/ip: not pushed: ")
    assert "again is written and can be pushed by `hf upload me/ip again`" in line
    assert "hf_secret" not in done.stdout + done.stderr
    assert {path.name for path in Path("again").iterdir()} == FILES


def test_what_is_missing_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(ADM)

    def said(form: str, to: str) -> str:
        assert cli.main(["export", "tiny/adm", "--format", form, "--to", "net", "--push", to]) == 2
        assert not Path("net").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--push goes with --format diffusers, not safetensors" in said("safetensors", "me/ip")
    for name in ("me", "me/", "/ip", "me/ip/more", "me/i p", "../ip"):
        assert f"--push is '{name}'; use ORG/NAME" in said("diffusers", name)
    pytest.importorskip("huggingface_hub")
    assert "--push needs a token of the Hub that may write: set HF_TOKEN" in said("diffusers", "me/ip")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "--push needs huggingface_hub; pip install huggingface_hub" in said("diffusers", "me/ip")
