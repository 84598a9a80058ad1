"""params.yaml: what is accepted, and the one line that refuses the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit import tiny
from unit.params_factory import drop, put, small, write

from ipdiff.errors import ConfigError
from ipdiff.parameters import Range, Record
from ipdiff.pipeline import config
from ipdiff.pipeline.config import reading, reference
from ipdiff.pipeline.config.spec import StudyParams
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import ADMNetwork, DDPMNetwork, Objective, Ramp, RunSpec

ROOT = Path(__file__).parents[3]
RAMP = {"start": 0.0, "end": 0.1, "until": 8}


def refusal(tmp_path: Path, raw: dict[str, Any]) -> str:
    """The message for these parameters, without the directory."""
    return refused(write(tmp_path, raw))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert "\n" not in message
    assert message.startswith("params.yaml")
    assert len(message) < 400
    for leftover in ("pydantic", "literal[", "list[", "Value error", "Input should", "input should", "__", "<unicode"):
        assert leftover not in message
    return message


def test_a_good_file_is_read_into_records(tmp_path: Path) -> None:
    params = config.load(write(tmp_path, small()))
    tiny = params.dataset("tiny")
    assert (tiny.source.limit, tiny.compute.threads, tiny.last_step("adm")) == (64, 1, 8)
    assert params.family("tiny", "adm").diffusion.T == 20
    assert params.family("tiny", "ddim").diffusion.T == 30
    assert params.model("adm-ip").borrowed == ["gamma"]
    assert params.study == "small"
    assert params.seeds_of("adm-ip") == [0, 1]
    assert params.seeds_of("ddim") == [0]
    assert params.work.states_kept == 2


def test_the_projects_own_files_are_good() -> None:
    studies = config.Studies(ROOT)
    assert studies.broken() == {}
    assert studies.names == ["digits", *sorted(path.name for path in (ROOT / "studies").iterdir())]
    for params in map(studies.load, studies.names):
        assert all(config.points(params, table) for table in params.tables.values())


def test_an_edit_is_seen_at_once(tmp_path: Path) -> None:
    raw = small()
    for title in ("one", "two", "three"):  # within one tick of the clock
        path = write(tmp_path, put(raw, "title", title))
        assert config.load(path).title == title


def test_raw_values_are_those_of_the_file(tmp_path: Path) -> None:
    raw = small()
    assert config.load(write(tmp_path, raw)).raw == raw
    assert config.value_at(raw, "datasets.tiny.families.adm.training.lr") == 0.002


def test_numbers_without_a_dot_before_the_exponent_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, put(small(), "datasets.tiny.families.adm.training.lr", "LR"))
    for written, value in (("1e-4", 1e-4), ("2E+1", 20.0), ("+3.5e0", 3.5), ("5e-05", 5e-5)):
        path.write_text(path.read_text().replace("lr: LR", f"lr: {written}"))
        found = config.value_at(config.load(path).raw, "datasets.tiny.families.adm.training.lr")
        assert type(found) is float
        assert found == value
        path.write_text(path.read_text().replace(f"lr: {written}", "lr: LR"))


def test_a_digest_that_begins_like_a_number_is_text(tmp_path: Path) -> None:
    digest = "5e19355" + "0" * 56 + "f"
    path = write(tmp_path, put(small(), "datasets.tiny.inception", {"sha256": "DIGEST"}))
    path.write_text(path.read_text().replace("DIGEST", digest))
    assert config.load(path).dataset("tiny").inception.sha256 == digest


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    path = write(tmp_path, small())
    text = path.read_text().replace("  adm:\n    family: adm\n", "  adm: &adm\n    family: adm\n")
    text = text.replace("    weight_decay: dataset\n", "").replace(
        "  adm-wd:\n    family: adm\n", "  adm-wd:\n    <<: *adm\n    weight_decay: dataset\n"
    )
    path.write_text(text)
    model = config.load(path).model("adm-wd")
    assert (model.family, model.borrowed) == ("adm", ["weight_decay"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("model", "models"),
        ("work.save_evry", "save_every"),
        ("models.adm-ip.gama", "gamma"),
        ("models.adm-ip.gamma.untl", "until"),
        ("datasets.tiny.classifierr", "classifier"),
        ("datasets.tiny.families.admm", "adm"),
        ("datasets.tiny.strengths.weight_decy", "weight_decay"),
        ("datasets.tiny.families.adm.training.batchsize", "batch_size"),
        ("datasets.tiny.families.ddpm.network.model_chanels", "model_channels"),
        ("tablez", "tables"),
        ("tables.table3.sampler", "samplers"),
        ("figures.figure3.step", "steps"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_one(tmp_path: Path, key: str, nearest: str) -> None:
    raw = small()
    raw["work"] = {}
    raw["models"]["adm-ip"]["gamma"] = dict(RAMP)
    message = refusal(tmp_path, put(raw, key, {}))
    assert message.startswith(f"params.yaml {key}: unknown key; did you mean '{nearest}'? known: ")


def test_a_key_like_no_other_gets_the_list_alone(tmp_path: Path) -> None:
    message = refusal(tmp_path, put(small(), "models.adm.xyzzy", 1))
    assert (
        message
        == "params.yaml models.adm.xyzzy: unknown key; known: family, gamma, target, gp_weight, weight_decay, decay, "
        "min_snr, start, imported"
    )


def test_a_misspelt_required_key_is_said_to_be_misspelt_not_missing(tmp_path: Path) -> None:
    point = {"dataset": "tiny", "modelx": "adm", "sampler": "ancestral-5"}
    message = refusal(tmp_path, put(small(), "tables.table3.points", [point]))
    assert message.startswith("params.yaml tables.table3.points.0.modelx: unknown key; did you mean 'model'?")


TRAINING = "datasets.tiny.families.adm.training"


@pytest.mark.parametrize(
    ("ramp", "said"),
    [
        ({"start": 0.0, "end": 0.1}, ".until: missing key"),
        ({"until": 8, "end": 0.1}, ".start: missing key"),
        ({**RAMP, "end": -0.1}, ": end is -0.1; use 0 or more"),
        ({**RAMP, "after": 8}, ": after is 8, not less than until, 8"),
    ],
)
@pytest.mark.parametrize("key", ["models.adm-ip.gamma", "datasets.tiny.strengths.gamma"])
def test_a_ramp_that_is_none_is_refused(tmp_path: Path, key: str, ramp: dict[str, Any], said: str) -> None:
    assert refusal(tmp_path, put(small(), key, ramp)) == f"params.yaml {key}{said}"


def test_a_start_may_have_other_dropout_and_heads_that_nobody_counts() -> None:
    run = tiny.change(tiny.ADM, num_head_channels=8)
    assert run.unlike(tiny.change(run, dropout=0.3, num_heads=2)) is None
    assert run.unlike(tiny.change(run, num_res_blocks=3)) == "its num_res_blocks is 3, not 1"
    two, one = (tiny.change(run, num_head_channels=None, num_heads=heads) for heads in (2, 1))
    assert two.unlike(one) == "its num_heads is 1, not 2"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("adm", "models.adm-ip.start: found 'adm'; expected a mapping"),
        ({"step": 4}, "models.adm-ip.start.model: missing key"),
        ({"model": "amd"}, "models.adm-ip.start.model: unknown name 'amd'; did you mean 'adm'?"),
        ({"model": "adm", "dataset": "tinyy"}, "models.adm-ip.start.dataset: unknown name 'tinyy'; did you mean"),
        ({"model": "adm", "step": 5}, "models.adm-ip.start.step: 5 is not one of datasets.tiny.checkpoints [4, 8]"),
        ({"model": "adm", "step": 0}, "models.adm-ip.start: step is 0; use 1 or more, or leave it out"),
        (
            {"model": "ddim"},
            "models.adm-ip.start: tiny/ddim has another network than tiny/adm-ip: its family is ddpm, not adm",
        ),
        (
            {"model": "adm", "dataset": "photos"},
            "models.adm-ip.start: photos/adm has another network than tiny/adm-ip: its channels is 3, not 1",
        ),
        ({"model": "adm-ip"}, "models.adm-ip.start: it goes round in a circle, tiny/adm-ip <- tiny/adm-ip"),
        (
            {"model": "adm-wd"},
            "models.adm-ip.start: it goes round in a circle, tiny/adm-ip <- tiny/adm-wd <- tiny/adm-ip",
        ),
    ],
)
def test_a_start_that_is_none_is_refused(tmp_path: Path, start: Any, said: str) -> None:
    raw = put(small(), "models.adm-wd.start", {"model": "adm-ip"})
    assert refusal(tmp_path, put(raw, "models.adm-ip.start", start)).startswith(f"params.yaml {said}")


def test_a_training_loss_is_of_whole_runs_that_were_trained_here(tmp_path: Path) -> None:
    figure = {"kind": "training", "title": "Loss", "datasets": ["tiny"], "models": ["adm"]}
    assert config.load(write(tmp_path, put(small(), "figures.loss", figure))).figure("loss").of_runs
    said = refusal(tmp_path, put(small(), "figures.loss", {**figure, "steps": [4]}))
    assert "figures.loss: steps is [4]; a training loss is shown of the whole run; leave it out" in said
    raw = put(small(), "figures.loss", {**figure, "models": ["ddim"]})
    said = refusal(tmp_path, put(raw, "models.ddim.imported", True))
    assert said.endswith("figures.loss.models: ddim is imported, so its training loss is not known; leave it out")


def test_nothing_trains_an_imported_model_on(tmp_path: Path) -> None:
    raw = put(small(), "models.adm.start", {"model": "adm-ip"})
    said = "params.yaml models.adm: start is set, but the model is imported: nothing trains it"
    assert refusal(tmp_path, put(raw, "models.adm.imported", True)) == said


def test_a_strength_may_change_over_training(tmp_path: Path) -> None:
    raw = put(small(), "datasets.tiny.strengths.gamma", RAMP)
    params = config.load(write(tmp_path, put(raw, "models.adm.min_snr", 5)))
    assert params.run_spec("tiny", "adm-ip", 0).objective.gamma == Ramp(0.0, 0.1, until=8)
    assert params.run_spec("tiny", "adm", 0).objective.min_snr == 5
    assert "min_snr" not in params.run_spec("tiny", "adm-ip", 0).to_json()["objective"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{TRAINING}.batch_size", "many", "found 'many'; expected a whole number"),
        (f"{TRAINING}.batch_size", 1.5, "found 1.5; expected a whole number"),
        (f"{TRAINING}.lr", "fast", "found 'fast'; expected a number"),
        (f"{TRAINING}.flip", "maybe", "found 'maybe'; expected true or false"),
        (TRAINING, None, "found nothing; expected a mapping"),
        ("datasets.tiny.families.adm", 7, "found 7; expected a mapping"),
        ("datasets.tiny.checkpoints", 8, "found 8; expected a list"),
        ("models.adm", "adm", "found 'adm'; expected a mapping"),
        ("models.adm.family", "amd", "found 'amd'; expected adm or ddpm; did you mean 'adm'?"),
        (
            "models.adm-ip.gamma",
            "datasett",
            "found 'datasett'; expected a number or a list of numbers or a mapping or the word 'dataset'",
        ),
        (
            "models.adm-ip.gamma",
            [0.1, "x"],
            "expected a number or a list of numbers or a mapping or the word 'dataset'",
        ),
        ("models.adm.gp_weight", [1], "found the list [1]; expected a number or the word 'dataset'"),
        ("datasets.tiny.strengths.gamma", "x", "found 'x'; expected a number or a list of numbers or a mapping"),
        ("models.adm-ip.gamma.until", 0.5, "found 0.5; expected a whole number"),
        ("models.adm-ip.gamma.shape", "cosin", "found 'cosin'; expected linear or cosine; did you mean 'cosine'?"),
        ("datasets.tiny.strengths.gamma.start", "x", "found 'x'; expected a number"),
        ("title", 3, "found 3; expected text"),
        ("tables", None, "found nothing; expected a mapping"),
        ("seeds.default", 0, "found 0; expected a list"),
        ("tables.table3.samplers", "ancestral-5", "found 'ancestral-5'; expected a list"),
    ],
)
def test_a_wrong_type_is_said_in_words(tmp_path: Path, key: str, value: Any, said: str) -> None:
    raw = small()
    for ramp in (raw["models"]["adm-ip"], raw["datasets"]["tiny"]["strengths"]):
        ramp["gamma"] = dict(RAMP)
    message = refusal(tmp_path, put(raw, key, value))
    assert message.startswith(f"params.yaml {key}: ")
    assert message.endswith(said)


def test_an_item_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    message = refusal(tmp_path, put(small(), "tables.table3.metrics", ["fid", "sfd"]))
    assert message.startswith("params.yaml tables.table3.metrics.1: found 'sfd'; expected ")
    assert message.endswith("did you mean 'sfid'?")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("inception_score", "inception_score needs datasets.tiny.features: inception, found classifier"),
        ("precision", "precision needs datasets.tiny.reference.neighbours: true"),
        ("recall", "recall needs datasets.tiny.reference.neighbours: true"),
    ],
)
def test_a_metric_that_the_data_set_is_not_measured_by(tmp_path: Path, metric: str, said: str) -> None:
    raw = put(small(), "tables.table3.metrics", ["fid", metric])
    assert refusal(tmp_path, raw) == f"params.yaml tables.table3: {said}"
    raw = put(small(), "figures.figure3.metric", metric)
    assert refusal(tmp_path, raw) == f"params.yaml figures.figure3: {said}"


def test_a_name_that_yaml_reads_as_a_number(tmp_path: Path) -> None:
    raw = small()
    raw["models"][0] = {"family": "adm"}
    assert refusal(tmp_path, raw) == "params.yaml models.0: a name must be text; write it in quotes"


@pytest.mark.parametrize(
    ("key", "value", "place", "said"),
    [
        ("datasets.tiny.source.channels", 2, "datasets.tiny.source", "channels is 2; use 1 or 3"),
        ("datasets.tiny.source.limit", 1, "datasets.tiny.source", "limit is 1; use 2 or more"),
        ("datasets.tiny.source.reader", "folder", "datasets.tiny.source", "reader folder needs one of `raw`"),
        ("datasets.tiny.source.raw", "x", "datasets.tiny.source", "reader digits needs no `raw` and no `archives`"),
        ("datasets.tiny.source.image_size", 16, "datasets.tiny.source", "image_size is 16; images of digits have 8"),
        ("datasets.photos.source.reader", "cifar10", "datasets.photos.source", "image_size is 8; images of cifar10"),
        ("datasets.photos.source.image_size", 0, "datasets.photos.source", "image_size is 0; use 1 or more"),
        (
            "datasets.photos.source.preprocessing",
            "crop128",
            "datasets.photos.source",
            "preprocessing is crop128; reader folder has none, center-crop",
        ),
        ("datasets.photos.source.archives", {"a.zip": None}, "datasets.photos.source", "reader folder needs one of"),
        ("downloads", {"a.zip": {"size": 0}}, "downloads.a.zip", "size is 0; use 1 or more"),
        ("datasets.tiny.classifier.holdout", 0.9, "datasets.tiny.classifier", "holdout is 0.9; use 0..0.5"),
        ("datasets.tiny.families.adm.diffusion.T", 1, "datasets.tiny.families.adm.diffusion", "T is 1; use 2 or more"),
        (f"{TRAINING}.micro_batch", 7, TRAINING, "micro_batch 7 does not divide batch_size 16"),
        (f"{TRAINING}.lr_decay", "cosine", TRAINING, "lr_decay needs lr_decay_steps > 0"),
        ("datasets.tiny.checkpoints", [8, 4], "datasets.tiny", "checkpoints [8, 4] must be one or more, ascending"),
        ("datasets.tiny.final_step.default", 9, "datasets.tiny", "final_step.default is 9, not one of checkpoints"),
        (
            "datasets.tiny.sampling.precision",
            "float16",
            "datasets.tiny",
            "sampling.precision is float16 with device cpu; float16 needs cuda",
        ),
        ("seeds.default", [-1], "", "seeds has -1; use 0..2**64-1"),
        ("seeds.default", [2**64], "", "seeds has 18446744073709551616; use 0..2**64-1"),
        ("datasets.photos.source.num_images", 40, "datasets.photos", "reference.images is 48, more than the 40 images"),
        ("datasets.photos.source.image_size", 1, "datasets.photos", "features is classifier, which needs source.image"),
        ("datasets.tiny.classifier.spatial_channels", 17, "datasets.tiny.classifier", "spatial_channels is 17; the"),
        ("figures.samples.images", 65, "figures.samples.images", "65 of the 64 that tiny"),
        ("models.adm-ip.gp_weight", "dataset", "models.adm-ip", "gp_weight is dataset with a gamma"),
        ("seeds", {"adm": [0]}, "", "seeds needs a `default`"),
    ],
)
def test_a_value_out_of_range(tmp_path: Path, key: str, value: Any, place: str, said: str) -> None:
    raw = put(small(), "datasets.photos.reference", {"images": 48})
    assert refusal(tmp_path, put(raw, key, value)).startswith(f"params.yaml {place}: {said}".replace(" :", ":"))


NETWORK = "datasets.tiny.families.adm.network"


@pytest.mark.parametrize(
    ("key", "written", "said"),
    [
        (f"{TRAINING}.ema_decay", "99.99", "ema_decay is 99.99; use 0 or more and less than 1"),
        (f"{TRAINING}.ema_decay", "-1", "ema_decay is -1.0; use 0 or more and less than 1"),
        (f"{TRAINING}.ema_decay", "2", "ema_decay is 2.0; use"),
        (f"{TRAINING}.lr", "-1", "lr is -1.0; use more than 0"),
        (f"{TRAINING}.lr", "0", "lr is 0.0; use more than 0"),
        (f"{TRAINING}.lr", "1e999", "lr is inf; use more than 0"),
        (f"{TRAINING}.grad_clip", "0", "grad_clip is 0.0; use more than 0, or leave it out"),
        (f"{TRAINING}.grad_clip", "-1", "grad_clip is -1.0; use more than 0, or leave it out"),
        (f"{TRAINING}.lr_warmup", "-5", "lr_warmup is -5; use 0 or more"),
        (f"{TRAINING}.micro_batch", "0", "micro_batch is 0; use 1 or more, or leave it out"),
        (f"{TRAINING}.batch_size", str(10**18 * 10), "batch_size is 10000000000000000000; use 1 or more and less than"),
        pytest.param(
            f"{TRAINING}.batch_size", "1" + 400 * "0", "batch_size is 10000000000000000000...; use", id="long"
        ),
        ("datasets.tiny.strengths.weight_decay", "-1", "weight_decay is -1.0; use 0 or more"),
        ("datasets.tiny.strengths.gp_weight", ".nan", "gp_weight is nan; use 0 or more"),
        ("datasets.tiny.strengths.gamma", ".inf", "gamma is inf; use 0 or more"),
        ("models.adm-ip.gamma", ".inf", "gamma is inf; use 0 or more"),
        ("models.adm-ip.gamma", "[0.1, -.inf]", "gamma has -inf; use 0 or more"),
        ("models.adm-ip.gamma", "[]", "gamma is an empty list"),
        ("models.adm.gp_weight", ".nan", "gp_weight is nan; use 0 or more"),
        ("models.adm.weight_decay", "-1e-9", "weight_decay is -1e-09; use 0 or more"),
        ("datasets.tiny.compute.threads", "100000", "threads is 100000; use 1..1024"),
        ("datasets.tiny.checkpoints", "[0, 8]", "checkpoints has 0; use 1 or more"),
        ("datasets.tiny.final_step.adm", "0", "final_step has 0; use 1 or more"),
        ("figures.samples.images", "0", "images is 0; use 1 or more"),
        (f"{NETWORK}.dropout", "1", "dropout is 1.0; use 0 or more and less than 1"),
        (f"{NETWORK}.dropout", "-.5", "dropout is -0.5; use"),
        (f"{NETWORK}.num_heads", "0", "num_heads is 0; use 1 or more"),
        (f"{NETWORK}.channel_mult", "[1, 0]", "channel_mult has 0; use 1 or more"),
    ],
)
def test_a_number_out_of_range_is_refused_when_it_is_read(tmp_path: Path, key: str, written: str, said: str) -> None:
    path = write(tmp_path, put(small(), key, "WRITTEN"))
    path.write_text(path.read_text().replace("WRITTEN", written))
    place = key.rpartition(".")[0].removesuffix(".final_step")
    assert refused(path).startswith(f"params.yaml {place}: {said}")


def test_a_whole_number_that_is_none_or_too_long_to_read(tmp_path: Path) -> None:
    for written, said in ((".inf", ": found inf; expected a whole number"), ("1" * 5000, "4300 digits")):
        path = write(tmp_path, put(small(), f"{TRAINING}.lr_warmup", "WRITTEN"))
        path.write_text(path.read_text().replace("WRITTEN", written))
        assert said in refused(path)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("adm", {"norm_groups": 3}, "norm_groups=3 does not divide a layer's 8 channels"),
        ("adm", {"model_channels": 9, "norm_groups": 9}, "model_channels=9 is not even"),
        ("adm", {"num_heads": 5}, "num_heads=5 does not divide the 16 channels of an attention block"),
        ("adm", {"num_head_channels": 32}, "num_head_channels=32 does not divide the 16 channels"),
        ("adm", {"num_heads": 16, "attention_resolutions": [8]}, "num_heads=16 does not divide the 8 channels"),
        ("adm", {"attention_resolutions": [16]}, "attention_resolutions has [16], but"),
        ("adm", {"channel_mult": []}, "channel_mult is empty; it has one number for each level"),
        ("ddpm", {"model_channels": 2, "norm_groups": 2}, "model_channels=2 is not an even number >= 4"),
        ("ddpm", {"channel_mult": [2, 2], "norm_groups": 16}, "norm_groups=16 does not divide a layer's 8 channels"),
    ],
)
def test_a_network_that_cannot_be_built(tmp_path: Path, family: str, change: dict[str, Any], said: str) -> None:
    raw = small()
    raw["datasets"]["tiny"]["families"][family]["network"].update(change)
    assert refusal(tmp_path, raw).startswith(f"params.yaml datasets.tiny.families.{family}.network: {said}")


@given(
    st.sampled_from(["adm", "ddpm"]),
    st.sampled_from([4, 8]),
    st.fixed_dictionaries(
        {
            "model_channels": st.integers(1, 12),
            "channel_mult": st.lists(st.integers(1, 3), max_size=3),
            "num_res_blocks": st.integers(1, 2),
            "attention_resolutions": st.lists(st.sampled_from([1, 2, 4, 8]), max_size=1),
            "norm_groups": st.integers(1, 6),
        }
    ),
    st.integers(1, 5),
    st.none() | st.integers(1, 8),
)
@settings(deadline=None)
def test_networks_are_refused_as_they_could_not_be_built(
    family: str, size: int, net: dict[str, Any], heads: int, head_channels: int | None
) -> None:
    import torch

    from ipdiff.nets.adm import ADMUNet
    from ipdiff.nets.ddpm import DDPMUNet

    if family == "adm":
        wanted, kind = ADMNetwork(**net, num_heads=heads, num_head_channels=head_channels), ADMUNet
    else:
        wanted, kind = DDPMNetwork(**net), DDPMUNet
    built: torch.nn.Module | None = None
    with contextlib.suppress(ValueError):
        built = kind(size, out_channels=1, in_channels=1, **dataclasses.asdict(wanted)).eval()
    if built is None:
        with pytest.raises(ValueError, match="."):
            wanted.check(size)
        return
    wanted.check(size)
    with torch.inference_mode():
        images = torch.zeros(2, 1, size, size)  # two: torch refuses to norm a single number
        assert built(images, torch.zeros(2)).shape == images.shape


def test_every_number_of_every_record_has_a_range() -> None:
    """One that has none would not be checked; and config/README.md would not say what may be written."""

    def numeric(hint: Any) -> bool:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Literal, tuple):  # a sampler's options are held against its kind's row
            return False
        return any(map(numeric, arguments)) if arguments else hint in (int, float)

    records = [*reference.records(StudyParams), RunSpec, Objective, Sampler]
    assert len(records) > 20
    for kind in records:
        assert issubclass(kind, Record), kind
        hints = typing.get_type_hints(kind, include_extras=True)
        without = [
            field.name
            for field in dataclasses.fields(kind)
            if numeric(hints[field.name])
            and not any(isinstance(part, Range) for part in getattr(hints[field.name], "__metadata__", ()))
        ]
        assert without == [], kind


@pytest.mark.parametrize(
    "key",
    ["models", "models.adm.family", "datasets.tiny.families", f"{TRAINING}.lr", "tables.table1.rows"],
)
def test_a_missing_key(tmp_path: Path, key: str) -> None:
    assert refusal(tmp_path, drop(small(), key)) == f"params.yaml {key}: missing key"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "params.yaml line 4, column 3: key 'c' stands twice"),
        ("a: [1\n", "params.yaml line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- 1\n", "params.yaml line 2, column 1: found character '\\t' that cannot start any token"),
        ("- 1\n", "params.yaml: found the list [1]; expected a mapping with datasets, models and tables"),
        ("", "params.yaml: found nothing; expected a mapping with datasets, models and tables"),
        (
            "a: !!python/name:os.system x\n",
            "params.yaml line 1, column 4: the tag !!python/name:os.system has no meaning here; write",
        ),
    ],
)
def test_not_the_expected_yaml(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert refused(path).startswith(said)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert refused(path) == "params.yaml is missing; run ipdiff in the project's root"
    path.write_bytes(b"title: \xe9\n")
    assert refused(path) == "params.yaml: not UTF-8: byte 7 is 0xe9"
    path.unlink()
    path.mkdir()
    assert refused(path) == "params.yaml cannot be read: Is a directory"


TABLE = "tables.table3"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seeds.amd", [0], "seeds: unknown name 'amd'; did you mean 'adm'?"),
        ("datasets.tiny.final_step.admip", 8, "datasets.tiny.final_step: unknown name 'admip'; did you mean 'adm-ip'?"),
        (f"{TABLE}.models", ["adm", "admip"], f"{TABLE}.models: unknown name 'admip'; did you mean 'adm-ip'?"),
        (f"{TABLE}.datasets", ["tony"], f"{TABLE}.datasets: unknown name 'tony'; did you mean 'tiny'?"),
        (f"{TABLE}.datasets", ["photo"], f"{TABLE}.datasets: unknown name 'photo'; did you mean 'photos'?"),
        (f"{TABLE}.compare", {"adm-ip": "amd"}, f"{TABLE}.compare: unknown name 'amd'; did you mean 'adm'?"),
        (f"{TABLE}.compare", {"ddim": "adm"}, f"{TABLE}.compare: unknown name 'ddim'"),
        (f"{TABLE}.models", [], f"{TABLE}: no cell; name datasets, models and samplers, or points"),
        (f"{TABLE}.metrics", [], f"{TABLE}: no metric; name one or more"),
        (f"{TABLE}.rows", ["metric"], f"{TABLE}: an axis stands twice in rows ['metric'] and columns ['metric']"),
        (f"{TABLE}.steps", [4, 8], f"{TABLE}: 2 values of step are asked for, but neither rows"),
        (f"{TABLE}.rows", ["sampler"], f"{TABLE}: 2 values of model are asked for, but neither rows ['sampler'] nor"),
        (f"{TABLE}.steps", [5], f"{TABLE}.steps: 5 is not one of datasets.tiny.checkpoints [4, 8]"),
        ("figures.figure3.steps", [7], "figures.figure3.steps: 7 is not one of"),
        ("figures.figure3.models", [], "figures.figure3: no cell; name datasets, models and samplers"),
        ("figures.figure3.kind", "errors", "figures.figure3: samplers is ['ancestral-5']; prediction errors need no"),
        ("figures.figure3.kind", "training", "figures.figure3: samplers is ['ancestral-5']; a training loss needs no"),
        ("figures.figure3.models", ["amd"], "figures.figure3.models: unknown name 'amd'"),
        (f"{TABLE}.samplers", ["ancestrl-5"], f"{TABLE}.samplers: sampler 'ancestrl-5' is unknown; use ancestral-N, "),
        ("datasets.tiny.families.adm", None, "datasets.tiny.families.adm: missing; model adm needs it"),
    ],
)
def test_a_name_that_does_not_exist(tmp_path: Path, key: str, value: Any, said: str) -> None:
    assert refusal(tmp_path, put(small(), key, value)).startswith(f"params.yaml {said}")


def test_names_inside_explicit_points(tmp_path: Path) -> None:
    for change, place in (
        ({"model": "amd"}, "models: unknown name 'amd'"),
        ({"dataset": "photo"}, "datasets: unknown name 'photo'"),
        ({"step": 3}, "steps: 3 is not one of"),
        ({"sampler": "ancestral-21"}, "samplers: sampler ancestral-21 asks for T' = 21, more than T = 20"),
    ):
        point = {"dataset": "tiny", "model": "adm", "sampler": "ancestral-5", **change}
        raw = drop(put(small(), f"{TABLE}.points", [point]), f"{TABLE}.compare")
        assert refusal(tmp_path, raw).startswith(f"params.yaml {TABLE}.{place}")


@pytest.mark.parametrize(
    ("model", "sampler", "said"),
    [
        ("adm", "ancestral-21", "asks for T' = 21, more than T = 20 of tiny/adm; use 1..20"),
        ("ddim", "ddim0-uniform31", "asks for T' = 31, more than T = 30 of tiny/ddim; use 1..30"),
        ("adm", "exposure-21", "asks for T' = 21, more than T = 20 of tiny/adm; use 1..20"),
        ("adm", "ancestral-0", "sampler 'ancestral-0': steps is 0; use 1 or more"),
        ("adm", "exposure-0", "sampler 'exposure-0': steps is 0; use 1 or more"),
        ("ddim", "ddim0-quad0", "sampler 'ddim0-quad0': steps is 0; use 1 or more"),
        ("adm", "ddim0-ddim11", "no integer stride keeps 11 of T=20 steps; use '11' or another N"),
        ("adm", "ddim0-cubic5", "is unknown; use ancestral-N, ddimETA-N"),
        ("adm", "ddim-5", "is unknown; use ancestral-N, ddimETA-N"),
        ("adm", "ancestral-05", "write it as 'ancestral-5' (one name, one artifact)"),
        ("adm", "ddim0.50-quad05", "write it as 'ddim0.5-quad5' (one name, one artifact)"),
        ("adm", "ancestral-5-float32", "tiny is sampled in float32 anyway; leave it out"),
        ("adm", "ancestral-5-float16", "float16 needs cuda, and datasets.tiny.compute.device is cpu"),
        ("adm", "ancestral-5-n64", "64 images are drawn of tiny anyway; leave -n out"),
        ("adm", "exposure-5-n48", "48 images are drawn of tiny anyway; leave -n out"),
        ("adm", "ancestral-5-n016", "write it as 'ancestral-5-n16' (one name, one artifact)"),
        ("adm", "ancestral-\u0665", "write it as 'ancestral-5' (one name, one artifact)"),
    ],
)
def test_a_sampler_that_the_chain_does_not_have(tmp_path: Path, model: str, sampler: str, said: str) -> None:
    raw = put(small(), "tables.table1.models", [model])
    message = refusal(tmp_path, put(raw, "tables.table1.samplers", [sampler]))
    assert message.startswith("params.yaml tables.table1.samplers: ")
    assert said in message


@pytest.mark.parametrize(
    "sampler",
    ["ancestral-20", "exposure-20", "exposure-1", "ddim0-7", "ddim1-ddim7", "ddim0.25-uniform7", "ddim1-quad20"],
)
def test_samplers_that_the_chain_has(tmp_path: Path, sampler: str) -> None:
    config.load(write(tmp_path, put(small(), f"{TABLE}.samplers", [sampler])))


@pytest.mark.parametrize("seeds", [[], [0, 1, 0]])
def test_seeds_that_make_no_or_the_same_cell(tmp_path: Path, seeds: list[int]) -> None:
    message = refusal(tmp_path, put(small(), "seeds.default", seeds))
    assert message.startswith(f"params.yaml seeds.default: found {seeds}; expected one seed or more")


@pytest.mark.parametrize("kind", ["datasets", "models", "tables", "figures"])
@pytest.mark.parametrize("name", ["a/b", "a.b", "a b", "{a}", "-a", "..", ""])
def test_a_name_that_would_spoil_a_path_or_a_key(tmp_path: Path, kind: str, name: str) -> None:
    raw = small()
    node = config.value_at(raw, kind)
    node[name] = node[next(iter(node))]
    message = refusal(tmp_path, raw)
    assert message == f"params.yaml {kind}: '{name}' cannot be part of a path; use letters, digits, '_' and '-'"


@pytest.mark.parametrize("kind", ["datasets", "models", "tables", "figures"])
@pytest.mark.parametrize("name", ["2024", "1e5", "0o7", "no", "1_0", "null"])
def test_a_name_that_yaml_takes_for_something_else(tmp_path: Path, kind: str, name: str) -> None:
    raw = small()
    node = config.value_at(raw, kind)
    node[name] = node[next(iter(node))]
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(raw))  # the name in quotes
    assert f"params.yaml {kind}: '{name}' is a number or another value to YAML" in refused(path)


def test_a_path_with_braces(tmp_path: Path) -> None:
    raw = put(small(), "datasets.photos.source.raw", "raw/{x}")
    assert "datasets.photos.source.raw: 'raw/{x}' has braces, which neither engine reads" in refusal(tmp_path, raw)


def test_lookups_name_the_nearest(tmp_path: Path) -> None:
    params = config.load(write(tmp_path, small()))
    for call, said in (
        (
            lambda: params.dataset("tyny"),
            "dataset 'tyny' is not in params.yaml; did you mean 'tiny'? known: tiny, photos",
        ),
        (lambda: params.model("adm_ip"), "model 'adm_ip' is not in params.yaml; did you mean 'adm-ip'? known: adm, "),
        (lambda: params.table("table2"), "table 'table2' is not in params.yaml; did you mean 'table"),
        (lambda: params.figure("smples"), "figure 'smples' is not in params.yaml; did you mean 'samples'? known: "),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).replace(f"{params.path.parent}/", "").startswith(said)


def test_points_are_the_product_in_its_order_each_with_its_step(tmp_path: Path) -> None:
    raw = put(small(), "datasets.tiny.final_step.adm-ip", 4)
    params = config.load(write(tmp_path, put(raw, f"{TABLE}.samplers", ["ancestral-5", "ancestral-2"])))
    found = [(p.model, p.step, p.sampler) for p in config.points(params, params.table("table3"))]
    assert found == [
        ("adm", 8, "ancestral-5"),
        ("adm", 8, "ancestral-2"),
        ("adm-ip", 4, "ancestral-5"),
        ("adm-ip", 4, "ancestral-2"),
    ]
    figure = params.figure("figure3")
    assert [p.step for p in config.points(params, figure)] == [4, 8]


def archives(value: Any) -> dict[str, Any]:
    """Parameters whose photos come from published files."""
    return put(drop(small(), "datasets.photos.source.raw"), "datasets.photos.source.archives", value)


@pytest.mark.parametrize(
    ("file", "digest", "said"),
    [
        ("a/b.zip", None, "archives has 'a/b.zip'; use the plain name of a file"),
        ("..", None, "archives has '..'; use the plain name of a file"),
        ("b.zip", "ABC", "archives.b.zip is 'ABC'; use a sha256: 64 hexadecimal digits in lower case"),
    ],
)
def test_archives_that_name_no_file(tmp_path: Path, file: str, digest: str | None, said: str) -> None:
    assert f"params.yaml datasets.photos.source: {said}" in refusal(tmp_path, archives({file: digest}))


def test_archives_are_joined_with_what_downloads_says(tmp_path: Path) -> None:
    raw = archives({"b.zip": "0" * 64})
    unsaid = "params.yaml datasets.photos.source.archives: how is b.zip got? Give downloads a key 'b.zip'"
    assert refusal(tmp_path, raw).startswith(unsaid)
    raw["downloads"] = {"b.zipp": {"url": "https://a/b.zip"}}
    assert refusal(tmp_path, raw).endswith("did you mean 'b.zipp'?")
    raw["downloads"] = {"b.zip": {"size": 3, "how": "ask."}}
    params = config.load(write(tmp_path, raw))
    (archive,) = params.archives(params.dataset("photos").source)
    assert (archive.file, archive.sha256, archive.size, archive.how) == ("b.zip", "0" * 64, 3, "ask.")
    assert params.archives(params.dataset("tiny").source) == []


# YAML as DVC reads it -----------------------------------------------------------------------------------------

TWO_WAYS = (
    "yes No on OFF 010 -010 08 0o10 -0o7 1_000 1_0.5 1:30 -1:30 1:30.5 190:20:30 ._5 1_ 0x1F 0b11 00 = -_ "
    "2026-11-25 2026-11-25T10:00:00Z"
).split()
ONE_WAY = (
    "true False null ~ 0 -1 +7 12 0.5 .5 -.5 +.5 1. 1e-4 2E+1 1.5e3 -3.5e0 -.5 1e400 .inf -.Inf .nan y n tRue adm-ip "
    "ancestral-100 5e19355f 0.1.2 .5e3 2026-1-1 _1 <a "
).split()


def both(text: str) -> tuple[Any, Any]:
    """What is read here, and by DVC."""
    from dvc.utils.serialize import parse_yaml

    return reading.parse(Path("params.yaml"), text), parse_yaml(text, "params.yaml")


@pytest.mark.parametrize("word", TWO_WAYS)
@pytest.mark.parametrize("text", ["a: {}", "a: [{}, 1]", "{}: a", "a:\n- - {}"])
def test_what_two_versions_of_yaml_read_differently_is_refused(word: str, text: str) -> None:
    written = text.replace("{}", word)
    with pytest.raises(ConfigError) as caught:
        reading.parse(Path("params.yaml"), written)
    line = written[: written.index(word)].count("\n") + 1
    assert str(caught.value).startswith(f"params.yaml line {line}, column ")
    assert f"'{word}' means different things to YAML 1.1 and 1.2; write " in str(caught.value)
    for quoted in (f"'{word}'", f'"{word}"'):
        ours, theirs = both(text.replace("{}", quoted))
        assert word in repr(ours)
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("word", ONE_WAY)
def test_what_they_read_alike_is_read(word: str) -> None:
    ours, theirs = both(f"a: {word}\nb: [{word}, {{c: {word}}}]")
    assert repr(ours) == repr(theirs)
    assert "tag" not in repr(ours)


def test_yes_in_params_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, put(small(), f"{TRAINING}.flip", "FLIP"))
    for word, value in (("yes", "true"), ("Off", "false")):
        path.write_text(text := path.read_text().replace("FLIP", word))
        assert f"'{word}' means different things to YAML 1.1 and 1.2; write {value}, or text in quotes" in refused(path)
        path.write_text(text.replace(word, "FLIP"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%YAML 1.1\n---\na: 1\n", "leave out the directive"),
        ("%TAG ! tag:x,1:\n---\na: 1\n", "leave out the directive"),
        ("a: !!bool yes\n", "the tag !!bool has no meaning here"),
        ("a: !!set {b, c}\n", "the tag !!set has no meaning here"),
        ("a: !!omap [b: 1]\n", "the tag !!omap has no meaning here"),
        ("a: b\u2028c\n", "line 1: U\\+2028 is a line break in YAML 1.1 alone"),
        ("a: 'b\x85 c'\n", "U\\+0085 is a line break in YAML 1.1 alone"),
        ("downloads: {a.zip: {url: https://a/a.zip}}\n", "DVC does not read 'https://a/a.zip' within"),
        ("a: [b:c]\n", "DVC does not read 'b:c' within"),
        ("a: [b: 1]\n", "a pair in \\[...\\] without braces"),
        ("a: 1\n---\nb: 1\n", "but found another document"),
    ],
)
def test_parts_of_yaml_that_have_two_meanings(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reading.parse(Path("params.yaml"), text)


SCALARS = st.one_of(
    st.text("0123456789+-_.:eExXoObBnNaAiIfF~<=TZ ", min_size=1, max_size=8),
    st.text("01:.?,-_eya ~<='\"#&*!|>%@`{}[]\t\n", min_size=1, max_size=6),
    st.sampled_from(
        [case(word) for word in ("yes", "true", "null", "off", ".inf", ".nan") for case in (str, str.upper)]
    ),
    st.floats().map(repr),
    st.integers().map(str),
    st.dates().map(str),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
)


@given(
    SCALARS, st.sampled_from(["a: {}\n", "- {}\n- 1\n", "a: {b: {}, c: [{}]}\n", "{}: 1\n", "a: '{}'\n", 'a: "{}"\n'])
)
@settings(deadline=None)
@example("<<", "a: {}\n")
@example("\ufeff", "a: {}\n")
def test_whatever_is_read_here_dvc_reads_alike(word: str, text: str) -> None:
    text = text.replace("{}", word)
    try:
        ours = reading.parse(Path("params.yaml"), text)
    except ConfigError:
        return
    theirs = both(text)[1]
    assert repr(ours or {}) == repr(theirs)
