"""Checkpoints of other code bases come in whole or not at all; ours go out so that others compute the same."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from unit import test_samplers
from unit.params_factory import put, small, write
from unit.tiny import ADM, DDIM, change, flip_bit

from ipdiff import cli
from ipdiff.cli import exchange
from ipdiff.device import compute
from ipdiff.device.spec import Compute
from ipdiff.errors import ConfigError, IntegrityError, UserError
from ipdiff.interop import checking, diffusers, reading, schedulers, writing
from ipdiff.nets import build
from ipdiff.pipeline import config, grid, jobs
from ipdiff.pipeline.commands.exchange import export, import_
from ipdiff.pipeline.commands.planning import plan
from ipdiff.pipeline.store import artifact
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.schedule import make_betas, respace
from ipdiff.spec import Network, RunSpec
from ipdiff.work import recipes

IP = "tiny/official"
DDPM = "tiny/ddim-official"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one model to import of each family, and no DVC."""
    monkeypatch.chdir(tmp_path)
    raw = put(small(), "models.official", {"family": "adm", "gamma": 0.15, "imported": True})
    put(raw, "models.ddim-official", {"family": "ddpm", "imported": True})
    write(tmp_path, raw)
    return tmp_path


def spec_of(run: str) -> RunSpec:
    """The run as params.yaml describes it."""
    dataset, model = run.split("/")
    return config.Studies().owner(dataset).run_spec(dataset, model, 0)


def weights(spec: RunSpec) -> dict[str, Tensor]:
    """Weights for the run's network without a zero in them, small enough for its output to be of order one."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 1)
        for name, shape in checking.shapes(spec).items()
    }


def save(path: Path, value: Any, **options: Any) -> Path:
    """torch.save, and the path."""
    torch.save(value, path, **options)
    return path


def refused(path: Path, run: str = IP) -> str:
    """The one line with which an import is refused, after which nothing is there."""
    with pytest.raises(UserError) as caught:
        import_.import_checkpoint(path, run, step=8)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert not Path("runs").exists()
    assert not list(artifact.STAGING.glob("*"))
    return message


# Formats


def of_training(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As guided-diffusion's fp16 training saves its EMA: all matrices are views of one flat tensor."""
    flat = torch.cat([value.flatten() for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}


FORMATS: dict[str, tuple[Callable[[Path, dict[str, Tensor]], Any], str]] = {
    "state dict": (lambda path, state: torch.save(state, path), "state dict"),
    "old format": (
        lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False), "state dict"
    ),
    "views of one tensor": (lambda path, state: torch.save(of_training(state), path), "state dict"),
    "transposed in memory": (
        lambda path, state: torch.save({name: value.T.contiguous().T if value.ndim == 2 else value
                                        for name, value in state.items()}, path), "state dict"
    ),
    "parallel": (lambda path, state: torch.save({f"module.{k}": v for k, v in state.items()}, path), "state dict"),
    "safetensors": (lambda path, state: save_file(state, path), "safetensors"),
    "DDIM list": (
        lambda path, state: torch.save(
            [{f"module.{k}": v + 1 for k, v in state.items()}, {"state": {}, "param_groups": []}, 3, 5000, state], path
        ),
        "DDIM list, EMA weights",
    ),
    "DDIM list without EMA": (
        lambda path, state: torch.save([{f"module.{k}": v for k, v in state.items()}, {}, 3, 5000], path),
        "DDIM list, model weights (it has no EMA)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", [IP, DDPM])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_bytes(name: str, run: str, project: Path) -> None:
    save, called = FORMATS[name]
    state = weights(spec_of(run))
    save(project / "file", state)
    done = import_.import_checkpoint(project / "file", run, step=8)
    assert (done.format, done.directory, done.pointer) == (called, f"runs/{run}/s0/8", None)
    assert done.parameters == sum(value.numel() for value in state.values())
    dataset, model = run.split("/")
    save_file(state, project / "expected", spec_of(run).metadata(dataset=dataset, model=model, step=8))
    published = project / done.directory / "ema.safetensors"
    assert published.read_bytes() == (project / "expected").read_bytes()


WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.module.")


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "list"])
@pytest.mark.parametrize("prefix", WRAPPED)
def test_what_wrappers_put_into_names_is_taken_off_in_every_format(prefix: str, kind: str, project: Path) -> None:
    state = weights(spec_of(IP))
    named = {f"{prefix}{name}": value for name, value in state.items()}
    if kind == "safetensors":
        save_file(named, project / "file")
    else:
        value = [named, {}, 3, 5000, named] if kind == "list" else named
        save(project / "file", value, _use_new_zipfile_serialization=kind != "old")
    done = import_.import_checkpoint(project / "file", IP, step=8)
    found = load_file(project / done.directory / "ema.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_wrapper_inside_the_network_is_taken_off_but_two_tensors_never_become_one(project: Path) -> None:
    state = weights(spec_of(IP))
    inner = {name.replace("middle_block.0.", "middle_block.0._orig_mod."): value for name, value in state.items()}
    assert inner.keys() != state.keys()
    import_.import_checkpoint(save(project / "inner.pt", inner), IP, step=8)
    both = {**state, **{f"module.{name}": value + 1 for name, value in state.items()}}
    with pytest.raises(UserError, match=r"differences: module\.\S+ is not in the network"):
        import_.import_checkpoint(save(project / "both.pt", both), IP, step=4)


@pytest.mark.parametrize("prefix", ["model.", "ema_model.unet."])
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_prefix_that_is_not_known_is_named_once(prefix: str, kind: str, project: Path) -> None:
    named = {f"module.{prefix}{name}": value for name, value in weights(spec_of(IP)).items()}
    path = project / "file"
    save_file(named, path) if kind == "safetensors" else save(path, named)
    message = refused(path)
    assert f"every name begins with '{prefix}', the network of {IP} has names such as time_embed.0.weight;" in message
    assert "is missing" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("ema_0.9999_460000.pt", 460000),
        ("ema_0.9999_4000000.pt", 4000000),
        ("ema_0.999_000020.pt", 20),
        ("model460000.pt", 460000),
        ("cifar10_ema_0.9999_460000.pt", 460000),
        ("model-790000.ckpt", 790000),
        ("ckpt_5000.pth", 5000),
        ("ema_0.9999_460000", 460000),
        ("ema_0.9999_460000.safetensors", 460000),
    ],
)
def test_the_step_is_read_off_the_files_name(name: str, step: int, project: Path) -> None:
    state, path = weights(spec_of(IP)), project / name
    save_file(state, path) if name.endswith("safetensors") else save(path, state)
    assert import_.import_checkpoint(path, IP).directory == f"runs/{IP}/s0/{step}"


@pytest.mark.parametrize("name", ["ADM_IP_015.pt", "a.pt", "model.pt", "ema.pt", "ema_0.9999.pt", "model2.pt"])
def test_a_name_without_a_step_is_asked_about(name: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(project / name, weights(spec_of(IP)))
    assert cli.main(["import", name, "--as", IP]) == 2
    said = capsys.readouterr().err
    assert f"{name}: its name does not say the training step, as ema_0.9999_460000.pt and model460000.pt do; " in said
    assert "give it with --step N (tables read step 8 of official)" in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()
    assert cli.main(["import", name, "--as", IP, "--step", "8"]) == 0
    assert "tables read" not in capsys.readouterr().out


def test_a_name_without_a_step_is_of_the_step_that_the_study_names(project: Path) -> None:
    raw = put(small(), "models.official", {"family": "adm", "gamma": 0.15, "imported": True})
    write(project, put(raw, "datasets.tiny.final_step.official", 460000))
    state = weights(spec_of(IP))
    assert import_.import_checkpoint(save(project / "ADM_IP_015.pt", state), IP).directory == f"runs/{IP}/s0/460000"
    named = save(project / "ema_0.9999_500000.pt", state)
    assert import_.import_checkpoint(named, IP).directory == f"runs/{IP}/s0/500000"


def test_the_step_inside_the_ddim_codes_list_is_used_and_the_one_asked_for_comes_first(project: Path) -> None:
    state = weights(spec_of(DDPM))
    path = save(project / "ckpt.pth", [state, {}, 3, 5000, state])
    done = import_.import_checkpoint(path, DDPM)
    assert done.directory == f"runs/{DDPM}/s0/5000"
    write = "write datasets.tiny.final_step.ddim-official: 5000 in studies/small/params.yaml"
    assert str(done).endswith(f"; tables read step 8 of it, unless they name one: {write}")
    assert import_.import_checkpoint(path, DDPM, step=8).directory == f"runs/{DDPM}/s0/8"


def test_the_recipe_names_the_source_and_the_run_and_nothing_of_this_machine(project: Path) -> None:
    state = weights(spec_of(IP))
    path = save(project / "ema_0.9999_460000.pt", state)
    import_.import_checkpoint(path, IP, seed=3, step=460000)
    recipe = recipes.read(project / "runs/tiny/official/s3/460000/recipe.json")
    assert recipe["source"]["name"] == "ema_0.9999_460000.pt"
    assert recipe["source"]["md5"] == artifact.file_digest(path)
    assert len(recipe["source"]["sha256"]) == 64
    assert RunSpec.from_json(recipe["run"]) == dataclasses.replace(spec_of(IP), seed=3)
    assert recipe["run"]["objective"]["gamma"] == 0.15
    assert "state" not in recipe
    assert str(project) not in json.dumps(recipe)


def test_the_sample_stage_takes_an_imported_checkpoint(project: Path) -> None:
    import_.import_checkpoint(save(project / "a.pt", weights(spec_of(IP))), IP, step=8)
    cell = grid.load().cell("sample", dataset="tiny", model="official", seed="0", step="8", sampler="ancestral-2")
    jobs.make(cell)
    images = np.load(cell.outputs[0])["arr_0"]
    assert images.shape == (64, 8, 8, 1)
    assert images.std() > 10
    flip_bit(Path("runs/tiny/official/s0/8/ema.safetensors"))
    with pytest.raises(IntegrityError, match=r"ema\.safetensors"):
        jobs.make(cell)


def test_a_set_is_quantised_and_computed_as_params_yaml_says(project: Path) -> None:
    small_weights = {name: 0.1 * value for name, value in weights(spec_of(DDPM)).items()}
    import_.import_checkpoint(save(project / "a.pt", small_weights), DDPM, step=8)
    raw = put(small(), "models.ddim-official", {"family": "ddpm", "imported": True})
    cell = {"dataset": "tiny", "model": "ddim-official", "seed": "0", "step": "8", "sampler": "exposure-2"}
    jobs.make(grid.load().cell("prepare", dataset="tiny"))
    sets = []
    for quantise in ("round", "truncate"):
        write(project, put(raw, "datasets.tiny.families.ddpm.quantise", quantise))
        jobs.make(grid.load().cell("sample", **cell))
        sets.append(np.load(grid.load().cell("sample", **cell).outputs[0])["arr_0"].astype(int))
    more = sets[0] - sets[1]
    assert set(np.unique(more)) == {0, 1}
    assert 0.3 < more[(sets[1] > 0) & (sets[1] < 254)].mean() < 0.7
    write(project, put(raw, "datasets.tiny.sampling.precision", "bfloat16"))
    dataset = config.Studies().dataset("tiny")
    assert (dataset.compute.precision, dataset.sampling_compute.precision) == ("float32", "bfloat16")
    if not compute.has_bfloat16():
        with pytest.raises(UserError, match="the precision is bfloat16, but this CPU has no bfloat16 instructions"):
            jobs.make(grid.load().cell("sample", **cell))
        return
    jobs.make(grid.load().cell("sample", **cell))
    low = np.load(grid.load().cell("sample", **cell).outputs[0])["arr_0"].astype(int)
    assert 0 < np.abs(low - sets[1]).mean() < 8


def test_a_checkpoint_imported_before_decay_was_a_models_key_is_still_read(project: Path) -> None:
    import_.import_checkpoint(save(project / "a.pt", weights(spec_of(IP))), IP, step=8)
    now = spec_of(IP).to_json()
    del now["objective"]["decay"]
    for optimizer, decay in (("adam", "coupled"), ("adamw", "decoupled")):
        before = RunSpec.from_json({**now, "training": {**now["training"], "optimizer": optimizer}})
        assert before == change(spec_of(IP), decay=decay)


def test_a_chain_changed_after_the_import_is_refused_where_it_is_sampled(project: Path) -> None:
    import_.import_checkpoint(save(project / "a.pt", weights(spec_of(IP))), IP, step=8)
    raw = put(small(), "models.official", {"family": "adm", "gamma": 0.15, "imported": True})
    write(project, put(raw, "datasets.tiny.families.adm.diffusion.T", 30))
    cell = grid.load().cell("sample", dataset="tiny", model="official", seed="0", step="8", sampler="ancestral-2")
    with pytest.raises(UserError, match=r"imported with another datasets\.tiny\.families\.adm\.diffusion; delete that"):
        jobs.make(cell)
    assert not Path("samples").exists()


def test_importing_again_changes_nothing_and_another_file_is_refused(project: Path) -> None:
    state = weights(spec_of(IP))
    path = save(project / "a.pt", state)
    folder = Path(import_.import_checkpoint(path, IP, step=8).directory)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    import_.import_checkpoint(path, IP, step=8)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    other = save(project / "b.pt", {name: value + 1 for name, value in state.items()})
    with pytest.raises(UserError, match=r"runs/tiny/official/s0/8 holds the checkpoint of a\.pt; delete that folder"):
        import_.import_checkpoint(other, IP, step=8)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# Files that are none


class Hostile:
    """Runs a command where pickle is read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("hacked",))


def _zip(compression: int, name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, b"0" * 1000)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"PNG and so on", "is a text that begins with 'PNG and so on'"),
        (b"PK\x03\x04 and nothing more", "damaged or truncated zip archive (File is not a zip file)"),
        (_zip(zipfile.ZIP_DEFLATED, "archive/data.pkl"), "archive/data.pkl in it is compressed"),
        (_zip(zipfile.ZIP_STORED, "images/0.png"), "is a zip archive of 1 .png files; expected a .pt"),
        (_zip(zipfile.ZIP_STORED, "archive/data.pkl"), "damaged or truncated"),
        (pickle.dumps({"data": 1}), "no file of torch.save, or more than tensors in it"),
        (b"\x80", "is of no known kind (it begins with b'\\x80')"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\": 1", "damaged or truncated safetensors"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoint_are_named(data: bytes, said: str, project: Path) -> None:
    path = project / "file"
    path.write_bytes(data)
    assert said in refused(path)


def test_a_missing_file_and_a_folder_are_named(project: Path) -> None:
    assert refused(project / "nothing").endswith("nothing is missing")
    assert refused(project).endswith("is a directory; expected a file")


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_wants_to_run_something_is_refused(old: bool, project: Path) -> None:
    state = {**weights(spec_of(IP)), "extra": Hostile()}
    path = save(project / "file.pt", state, _use_new_zipfile_serialization=not old)
    message = refused(path)
    assert "its pickle asks for posix.mkdir, which is no tensor" in message
    assert not Path("hacked").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_files_are_named_wherever_they_end(kind: str, project: Path) -> None:
    state, path = weights(spec_of(IP)), project / "file"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for share in (0.001, 0.3, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "damaged or truncated" in refused(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"state": {0: {"step": 1}}, "param_groups": []}, "an optimiser's state (opt*.pt), no weights"),
        ({"epoch": 3, "state_dict": {}}, "a mapping, but no names and tensors (keys: epoch, state_dict)"),
        ({}, "a mapping, but no names and tensors (keys: none)"),
        (torch.zeros(3), "holds a Tensor"),
        ([1, 2], "a list of int, int; expected the DDIM code's"),
        ([], "a list of nothing"),
    ],
)
def test_other_things_that_torch_saved_are_named(value: Any, said: str, project: Path) -> None:
    assert said in refused(save(project / "file.pt", value))


# Weights that are not the network's


def altered(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = {**weights(spec_of(IP)), **changes}
    return {name: value for name, value in state.items() if value is not None}


OUT = "out.2.weight"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "out.2.weight is missing"),
        (torch.zeros(2, 8, 3, 3), "out.2.weight has shape [2, 8, 3, 3], the network's is [1, 8, 3, 3]"),
        (torch.zeros(1, 8, 3, 3).half(), "out.2.weight is float16, expected float32"),
        (torch.zeros(1, 8, 3, 3).to_sparse(), "out.2.weight is a torch.sparse_coo tensor"),
        (torch.full((1, 8, 3, 3), torch.nan), "out.2.weight has 72 values that are not finite, of 72"),
        (7, "out.2.weight is a int, no tensor"),
    ],
)
def test_one_wrong_tensor_is_one_named_difference(value: Any, said: str, project: Path) -> None:
    message = refused(save(project / "file.pt", altered(**{OUT: value})))
    assert f"not the network of {IP}, 1 difference: {said}" in message


def test_all_differences_are_counted_and_the_first_are_shown(project: Path) -> None:
    state = weights(spec_of(IP))
    names = list(state)
    for name in names[:9]:
        del state[name]
    state["label_emb.weight"] = torch.zeros(10, 32)
    state[names[20]] = state[names[20]] * torch.inf
    message = refused(save(project / "file.pt", state))
    assert "11 differences" in message
    shown = message.split("differences: ")[1].split("; ")
    assert len(shown) > 3
    assert shown == [*(f"{name} is missing" for name in names[: len(shown) - 1]), f"and {12 - len(shown)} more"]
    assert len(message) <= 250 + len(str(project))
    assert checking.problems(state, checking.shapes(spec_of(IP)))[9] == "label_emb.weight is not in the network"


def test_the_other_code_bases_network_is_recognised(project: Path) -> None:
    path = save(project / "file.pt", weights(spec_of(DDPM)))
    assert "a network of the DDIM code (family ddpm), but the model of tiny/official has family adm" in refused(path)
    path = save(project / "file.pt", weights(spec_of(IP)))
    assert "a network of guided-diffusion (family adm)" in refused(path, DDPM)


# The project


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("tiny", "--as is 'tiny'; write DATASET/MODEL"),
        ("tiny/a/b", "--as is 'tiny/a/b'"),
        ("tiny/officials", "did you mean 'official'? to import one, add to models: officials: {family: adm"),
        ("tiny/adm", "model adm is trained here; give the imported one a key of its own"),
        ("tni/official", "did you mean 'tiny'?"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_imported_is_explained(run: str, said: str, project: Path) -> None:
    assert said in refused(save(project / "a.pt", weights(spec_of(IP))), run)


def test_an_imported_model_has_no_training_cells() -> None:
    known = grid.load()
    for verb in ("train", "resume"):
        with pytest.raises(ConfigError, match=r"model official is imported, not trained; get its .* `ipdiff import`"):
            known.cell(verb, dataset="tiny", model="official", seed="0", step="8")
    cell = known.maker("runs/tiny/official/s0/8/ema.safetensors")
    assert cell is not None
    assert cell.given
    assert known.maker("runs/tiny/official/s0/8/loss.csv") is None
    trained = known.maker("runs/tiny/adm/s0/8/ema.safetensors")
    assert trained is not None
    assert trained.stage.verb == "train"


def test_a_table_may_ask_for_an_imported_checkpoint_at_any_step(project: Path) -> None:
    raw = put(small(), "models.official", {"family": "adm", "imported": True})
    put(raw, "tables.table3.models", ["adm", "official"])
    put(raw, "tables.table3.compare", {"official": "adm"})
    put(raw, "datasets.tiny.final_step.official", 460000)
    write(project, raw)
    known = grid.load()
    assert [cell.directory for cell in known.imports("small")] == ["runs/tiny/official/s0/460000"]
    verbs = {cell.stage.verb for cell in known.study("small") if cell.bindings.get("model") == "official"}
    assert verbs == {"sample", "evaluate"}
    planned = plan.run(["small"]).verbs["import"]
    weights = sum(int(np.prod(shape)) for shape in checking.shapes(spec_of(IP)).values())
    assert (planned.cells, planned.missing, planned.bytes) == (1, 1, 4 * weights)
    write(project, put(raw, "datasets.tiny.final_step.official", 0))
    with pytest.raises(ConfigError, match="datasets.tiny: final_step has 0; use 1 or more"):
        grid.load().study("small")


# Out

MODEL = {"adm": "adm", "ddpm": "ddim"}


def trained(spec: RunSpec) -> dict[str, Tensor]:
    """A published checkpoint of this run, as the train stage leaves it."""
    state, folder = weights(spec), Path(f"runs/tiny/{MODEL[spec.family]}/s0/8")
    recipe = {"cell": str(folder), "stage": "train", "run": spec.to_json()}
    with artifact.publishing(folder, ("ema.safetensors",), recipe) as made:
        save_file(state, made.staging / "ema.safetensors")
    return state


def official(project: Path) -> RunSpec:
    """Make the imported ADM model one that guided-diffusion could build, but for its size."""
    raw = put(small(), "models.official", {"family": "adm", "imported": True})
    put(raw, "datasets.tiny.families.adm.network.model_channels", 32)
    put(raw, "datasets.tiny.families.adm.network.norm_groups", 32)
    write(project, raw)
    return spec_of(IP)


@pytest.mark.parametrize("form", ["guided-diffusion", "safetensors"])
def test_export_and_import_give_the_same_bytes(form: str, project: Path) -> None:
    trained(official(project))
    first = export.export_checkpoint("tiny/adm", form, project / "a.pt")
    second = export.export_checkpoint("runs/tiny/adm/s0/8/ema.safetensors", form, project / "b.pt")
    assert first.read_bytes() == second.read_bytes()
    done = import_.import_checkpoint(first, IP, step=8)
    ours, back = (load_file(Path(folder, "ema.safetensors")) for folder in ("runs/tiny/adm/s0/8", done.directory))
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_a_guided_diffusion_export_is_a_plain_float32_state_dict(project: Path) -> None:
    state = trained(official(project))
    path = export.export_checkpoint("tiny/adm/s0/8", "guided-diffusion", project / "a.pt")
    found = torch.load(path, weights_only=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_exported_safetensors_carry_their_run_in_one_key(project: Path) -> None:
    trained(ADM)
    path = export.export_checkpoint("tiny/adm", "safetensors", project / "a.safetensors")
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    assert list(metadata) == ["ipdiff"]
    said = json.loads(metadata["ipdiff"])
    assert RunSpec.from_json(said.pop("run")) == ADM
    assert said == {"dataset": "tiny", "model": "adm", "step": 8, "gamma": ADM.objective.gamma}


@pytest.mark.parametrize(
    ("said", "step"),
    [('{"step": 7}', 7), ('{"step": -1}', None), ('{"step": true}', None), ("[]", None), ("{", None), (None, None)],
)
def test_safetensors_of_this_project_say_their_step_and_others_are_read_all_the_same(
    said: str | None, step: int | None, project: Path
) -> None:
    save_file({"x": torch.ones(2)}, project / "a.safetensors", None if said is None else {"ipdiff": said})
    found = reading.read(project / "a.safetensors")
    assert found.step == step
    assert found.tensors["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("spec", "form", "said"),
    [
        (ADM, "guided-diffusion", "guided-diffusion's norms have 32 groups, this network's 2"),
        (DDIM, "guided-diffusion", "this network's is ddpm"),
        (change(ADM, channel_mult=[2, 4]), "diffusers", "channel_mult starts with 2"),
        (change(ADM, num_head_channels=None, attention_resolutions=[4], num_heads=2), "diffusers", "num_heads is 2"),
        (ADM, "onnx", "--format is 'onnx'; use safetensors, guided-diffusion, diffusers"),
    ],
)
def test_a_network_that_does_not_map_is_refused_with_the_reason(
    spec: RunSpec, form: str, said: str, project: Path
) -> None:
    trained(spec)
    with pytest.raises(UserError) as caught:
        export.export_checkpoint(f"tiny/{MODEL[spec.family]}", form, project / "out")
    assert said in str(caught.value)
    assert not [path for path in project.iterdir() if "out" in path.name]


def test_exports_never_replace_and_read_only_what_is_whole(project: Path) -> None:
    trained(ADM)
    (project / "there").touch()
    with pytest.raises(UserError, match="there exists; delete it"):
        export.export_checkpoint("tiny/adm", "safetensors", project / "there")
    with pytest.raises(UserError, match="is no directory; make it first"):
        export.export_checkpoint("tiny/adm", "safetensors", project / "no/where")
    with pytest.raises(UserError, match=r"runs/tiny/adm-ip/s0/8/ema\.safetensors is missing"):
        export.export_checkpoint("tiny/adm-ip", "safetensors", project / "a")
    with pytest.raises(UserError, match=r"'adm' is no folder of a checkpoint here, nor DATASET/MODEL"):
        export.export_checkpoint("adm", "safetensors", project / "a")
    flip_bit(Path("runs/tiny/adm/s0/8/ema.safetensors"))
    with pytest.raises(IntegrityError):
        export.export_checkpoint("tiny/adm", "safetensors", project / "a")
    assert not (project / "a").exists()


def test_the_command_line_imports_and_exports(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(project / "a.pt", weights(spec_of(IP)))
    assert cli.main(["import", "a.pt", "--as", IP, "--step", "20"]) == 0
    assert capsys.readouterr().out.startswith("runs/tiny/official/s0/20: ")
    assert cli.main(["export", f"{IP}/s0/20", "--format", "diffusers", "--to", "net"]) == 0
    assert capsys.readouterr().out == "net\n"
    assert cli.main(["import", "studies/small/params.yaml", "--as", IP]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tuple(exchange.EXPORT_FORMATS) == export.FORMATS


# The paper's networks


def full(**network: Any) -> RunSpec:
    common = {"dropout": 0.1, "norm_groups": 32}
    return change(ADM, image_size=network.pop("image_size"), channels=3, learn_sigma=True, **common, **network)


PAPER = {
    "cifar10": (
        full(image_size=32, model_channels=128, channel_mult=[1, 2, 2, 2], num_res_blocks=3,
             attention_resolutions=[16, 8], num_head_channels=32), 494, 57_094_662,
    ),
    "celeba64": (
        full(image_size=64, model_channels=192, channel_mult=[1, 2, 3, 4], num_res_blocks=3,
             attention_resolutions=[32, 16, 8], num_head_channels=64), 540, 295_136_454,
    ),
    "ffhq128": (
        full(image_size=128, model_channels=256, channel_mult=[1, 1, 2, 3, 4], num_res_blocks=3,
             attention_resolutions=[32, 16, 8], num_head_channels=64), 638, 542_811_398,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_official_files_are_expected_with_the_papers_tensors(name: str) -> None:
    spec, tensors, parameters = PAPER[name]
    expected = checking.shapes(spec)
    assert len(expected) == tensors
    assert sum(int(np.prod(shape)) for shape in expected.values()) == parameters


# diffusers

MAPPED = {
    "as published": change(ADM, learn_sigma=True),
    "attention at every level, in the middle of three": change(
        ADM, image_size=8, channel_mult=[1, 2, 3], attention_resolutions=[8, 4], num_head_channels=2, num_res_blocks=2
    ),
    "no attention but in the middle": change(ADM, attention_resolutions=[], num_res_blocks=3),
    "strided convolutions": change(ADM, resblock_updown=False, attention_resolutions=[4]),
    "strided convolutions, no attention": change(ADM, resblock_updown=False, attention_resolutions=[]),
    "added time embedding": change(ADM, use_scale_shift_norm=False),
    "heads before q, k and v": change(ADM, new_attention_order=False, num_head_channels=2),
    "a number of heads": change(ADM, num_head_channels=None, num_heads=2, attention_resolutions=[]),
    "same width twice": change(ADM, image_size=8, channel_mult=[1, 1, 2], num_res_blocks=2),
    "three channels": change(ADM, channels=3, learn_sigma=True),
    "DDIM": DDIM,
    "DDIM, three levels": change(
        DDIM, image_size=8, channel_mult=[1, 2, 2], num_res_blocks=2, attention_resolutions=[4]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Any:
    """The real diffusers, whose own warnings at import are not ours."""
    return pytest.importorskip("diffusers", reason="diffusers is not installed: outputs were not compared")


@pytest.mark.parametrize("name", MAPPED)
def test_diffusers_computes_the_same(name: str, library: Any, project: Path) -> None:
    spec = MAPPED[name]
    state = trained(spec)
    folder = export.export_checkpoint(f"tiny/{MODEL[spec.family]}", "diffusers", project / "net")
    theirs = library.UNet2DModel.from_pretrained(folder)
    assert sum(value.numel() for value in theirs.state_dict().values()) == sum(v.numel() for v in state.values())
    ours = build.network(spec)
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, spec.channels, spec.image_size, spec.image_size, generator=generator)
    t = torch.tensor([0, 1, 7, 300, 999])
    with torch.inference_mode():
        expected, got = ours.eval()(x, t), theirs.eval()(x, t).sample
    assert expected.std() > 0.1
    assert float((expected - got).abs().max()) < 1e-5


def test_what_diffusers_has_no_word_for_is_refused() -> None:
    spec = next(iter(MAPPED.values()))
    objective = dataclasses.replace(spec.objective, target="score")
    with pytest.raises(UserError, match="no word for target score; use safetensors"):
        schedulers.config(dataclasses.replace(spec, objective=objective), True)
    other = dataclasses.replace(spec, family="mlp", network=Network(model_channels=8))
    with pytest.raises(UserError, match="for families adm and ddpm, not mlp; use safetensors"):
        diffusers.unet_config(other)
    with pytest.raises(UserError, match="for family adm; this network's is mlp"):
        writing.write_guided_diffusion(Path("net.pt"), {}, other)


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "ffhq128"])
def test_the_papers_networks_have_their_names_and_shapes_in_diffusers(name: str, library: Any) -> None:
    spec = PAPER[name][0]
    with torch.device("meta"):
        theirs = library.UNet2DModel.from_config(diffusers.unet_config(spec))
        ours = diffusers.rename({key: torch.empty(shape) for key, shape in checking.shapes(spec).items()}, spec)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        (change(ADM, T=40, learn_sigma=True), "40"),
        (change(ADM, T=40, learn_sigma=True), "10"),
        (change(ADM, T=1000, learn_sigma=True), "100"),
        (change(ADM, T=40, schedule="linear"), "8"),
        (change(ADM, T=40, fixed_variance="large"), "40"),
        (change(ADM, T=40, fixed_variance="small"), "10"),
        (change(ADM, T=40, gamma=0.15, target="eps_prime"), "10"),
        (change(ADM, T=40, gamma=0.15, target="v", learn_sigma=True), "10"),
        (change(DDIM, T=40, target="v"), "uniform10"),
        (change(DDIM, T=40), "uniform10"),
        (change(DDIM, T=1000), "uniform100"),
    ],
)
def test_a_step_of_the_exported_scheduler_is_ours(spec: RunSpec, grid: str, library: Any, project: Path) -> None:
    state = trained(spec)
    folder = export.export_checkpoint(f"tiny/{MODEL[spec.family]}", "diffusers", project / "net")
    kind = library.DDIMScheduler if spec.family == "ddpm" else library.DDPMScheduler
    scheduler = kind.from_pretrained(folder)
    T = spec.diffusion.T
    np.testing.assert_allclose(scheduler.betas.numpy(), make_betas(spec.diffusion.schedule, T), rtol=2e-5)
    assert scheduler.config["prediction_type"] == {"v": "v_prediction"}.get(spec.objective.target, "epsilon")
    kept = respace(T, grid)
    scheduler.set_timesteps(len(kept))
    assert scheduler.timesteps.tolist() == kept[::-1].tolist()
    model = build.network(spec)
    model.load_state_dict(state)
    diffusion = build.diffusion(spec, kept)
    clip = spec.family == "adm"
    assert scheduler.config["clip_sample"] == clip
    generator = torch.Generator().manual_seed(2)
    for i in (len(kept) - 1, len(kept) // 2, 1, 0):
        x = torch.randn(3, 1, 4, 4, generator=generator)
        noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(i))
        draw, t = {"generator": torch.Generator().manual_seed(i)}, int(kept[i])
        with torch.inference_mode():
            out = model.eval()(x, torch.full((3,), t))
            if spec.family == "adm":
                pairs = [(scheduler.step(out, t, x, **draw), diffusion.ancestral_step(model, x, i, noise, clip))]
            else:
                pairs = [
                    (scheduler.step(out, t, x, eta=eta, **draw), diffusion.ddim_step(model, x, i, noise, eta, clip))
                    for eta in (0.0, 0.5 if i else 0.0)  # ours is 0 in the last step, where there is no noise
                ]
        for theirs, ours in pairs:
            torch.testing.assert_close(theirs.prev_sample, ours, rtol=1e-3, atol=1e-3)


def test_what_diffusers_has_no_word_for_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(change(ADM, gamma=0.1, target="eps_prime"))
    assert cli.main(["export", "tiny/adm", "--format", "diffusers", "--to", "net"]) == 0
    said = capsys.readouterr()
    assert said.out == "net\n"
    assert said.err.startswith("the network predicts eps', the noise of its perturbed input")
    assert said.err.count("\n") == 1
    assert cli.main(["export", "tiny/adm", "--format", "safetensors", "--to", "file"]) == 0
    assert capsys.readouterr().err == ""
    write(project, put(small(), "datasets.tiny.families.ddpm.clip_denoised", True))
    trained(DDIM)
    assert cli.main(["export", "tiny/ddim", "--format", "diffusers", "--to", "clamped"]) == 0
    assert "use_clipped_model_output=True" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_where_nothing_can_be_made(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(ADM)
    assert cli.main(["export", "tiny/adm", "--format", "safetensors", "--to", "/proc/x"]) == 2
    assert capsys.readouterr().err.startswith("ipdiff: /proc/x: cannot be written: ")


def test_the_pipeline_of_diffusers_loads_the_folder(library: Any, project: Path) -> None:
    trained(change(ADM, learn_sigma=True))
    folder = export.export_checkpoint("tiny/adm", "diffusers", project / "net")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "model_index.json", "scheduler_config.json"
    }  # fmt: skip
    pipeline = library.DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=4, output_type="np").images
    assert images.shape == (2, 4, 4, 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("name", ["dpmpp2m", "unipc"])
def test_a_solver_draws_with_an_imported_network_what_diffusers_draws(name: str, project: Path) -> None:
    done = import_.import_checkpoint(save(project / "a.pt", weights(spec_of(DDPM))), DDPM, step=8)
    file, sampler = Path(done.directory, "ema.safetensors"), Sampler.parse(f"{name}-logsnr5")
    draw = ImageSampler(spec_of(DDPM), file, sampler, clip_denoised=False, compute=Compute())
    with torch.inference_mode():
        found = draw.walk(range(2))
        expected = test_samplers.theirs(name, draw.diffusion, draw.model, draw.begin(range(2)))
    assert float((found - expected).abs().max()) <= 1e-5 * max(float(expected.abs().max()), 1)
