"""`ipdiff doctor`: what this machine has and lacks, in plain words.

A finding is fine, worth knowing, or in the way of something. It reads no large file but the Inception network.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import get_args

from ipdiff import __version__
from ipdiff.data.download import place
from ipdiff.data.formats import ffhq_list
from ipdiff.data.spec import Archive
from ipdiff.device import kernels
from ipdiff.device.spec import Compute, Precision
from ipdiff.errors import UserError
from ipdiff.metrics.features import inception_file
from ipdiff.metrics.spec import FEATURES, Inception, TorchScript
from ipdiff.pipeline import config, grid, selfcheck
from ipdiff.pipeline.commands.planning import memory
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Grid, checks
from ipdiff.pipeline.store import receipts

FINE, NOTE, WRONG = "ok", "note", "lacks"
MISSING = "missing"
"""Of a data set: a note, or what a study lacks."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and what to do where something is lacking.

    `subject` is what the text begins with, where the rest is true of other data sets' files too.
    """

    mark: str
    about: str
    text: str
    subject: str = ""


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as they are printed, in columns that are as wide as their longest entry."""
    mark = max((len(finding.mark) for finding in findings), default=0)
    about = max((len(finding.about) for finding in findings), default=0)
    return [f"{finding.mark:<{mark}}  {finding.about:<{about}}  {finding.text}" for finding in findings]


def examine(study: str | None = None) -> list[Finding]:
    """Look at everything; a check that fails is a finding, not an end.

    Args:
        study: look at this study alone. If None, at all of them: what the default study needs and is not here counts
            as lacking, of the others it is only said.

    Raises:
        UserError: there is no such study.
    """
    findings = [*_itself(), *_torch(), *_cpu(), *_packages(), *_git_state(), *_disk()]
    known = grid.load()
    studies, alone = known.studies, study is not None
    study = study or config.DEFAULT
    try:
        names = studies.names
    except UserError as error:
        return [*findings, Finding(WRONG, "studies", str(error))]
    if study not in names:
        studies.load(study)  # says so
    names = [study] if alone else names
    looked_at = names if alone else None
    unread, broken = studies.broken(looked_at), checks.broken(known, looked_at)
    read = [studies.load(name) for name in names if name not in unread]
    text = f"{', '.join(params.study for params in read)}: {sum(len(params.datasets) for params in read)} data sets"
    findings += [Finding(FINE, "studies", text)] if read else []
    findings += [Finding(WRONG if name == study else NOTE, "studies", line) for name, line in broken.items()]
    findings += [Finding(NOTE, "studies", line) for params in read for line in checks.notes(known, params.study)]
    findings += _store(names)
    findings += _memory(known, study, _card()) if study not in broken else []
    findings += [one for params in read if params.study == study for one in _gamma(params)]
    network, found = cache(_network), list[Finding]()  # a file of several data sets is read once
    for params in read:
        for name, dataset in params.datasets.items():
            found += _data(params, name)
            if FEATURES[dataset.features].file == "published":
                found.append(replace(network(dataset.feature_settings), about=name))
            elif FEATURES[dataset.features].file == "named":
                found.append(_named(name, dataset.feature_settings))
    needed = {name for params in read if params.study == study for name in params.datasets}
    missing = {True: WRONG, False: NOTE}  # what is missing stands in the way only of a study that needs it
    marks = [missing[one.about in needed] if one.mark == MISSING else one.mark for one in found]
    return [*findings, *_together(replace(one, mark=mark) for one, mark in zip(found, marks, strict=True))]


def _together(findings: Iterable[Finding]) -> list[Finding]:
    """What is found of several data sets, once: with all their names, and the gravest of their marks."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.text.removeprefix(finding.subject), []).append(finding)
    return [group[0] if len(group) == 1 else _joined(text, group) for text, group in groups.items()]


def _joined(text: str, group: list[Finding]) -> Finding:
    names: dict[str, list[str]] = {}
    for finding in group:
        names.setdefault(finding.subject, []).append(finding.about)
    mark = max((finding.mark for finding in group), key=(FINE, NOTE, WRONG).index)
    about = f"{len({finding.about for finding in group})} data sets"
    subjects = ", ".join(f"{subject} ({', '.join(of)})" for subject, of in names.items())
    one = f"{group[0].text} ({', '.join(names[group[0].subject])})"
    return Finding(mark, about, one if len(names) == 1 else f"each of {subjects}{text}")


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """The findings as objects of `mark`, `about` and `text`."""
    return [{"mark": one.mark, "about": one.about, "text": one.text} for one in findings]


def _itself() -> Iterator[Finding]:
    yield Finding(FINE, "ipdiff", __version__)
    yield Finding(FINE, "system", platform.platform())
    version = platform.python_version()
    enough = sys.version_info >= (3, 11)
    yield Finding(FINE if enough else WRONG, "python", version if enough else f"{version}; ipdiff needs 3.11 or later")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(WRONG, "torch", f"cannot be imported ({error}); run make install")
        return
    yield Finding(FINE, "torch", torch.__version__)
    if (card := _card()) is not None:
        text = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {card / 2**30:.0f} GiB each"
        yield Finding(FINE, "CUDA", f"{text}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    else:
        yield Finding(NOTE, "CUDA", "no device: everything runs on the CPU, days to weeks for the paper's networks")


def _card() -> int | None:
    """Bytes of memory of the GPU that is here, if one is."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _memory(known: Grid, study: str, card: int | None) -> Iterator[Finding]:
    """What training a study's networks needs of a GPU's memory."""
    runs = memory.trained(known.studies, known.study(study))
    for one in memory.of_runs(runs):
        enough = card is None or one.total <= card
        mark = WRONG if card is not None and one.least > card else FINE if enough else NOTE
        yield Finding(mark, "GPU memory", f"training {one.name}: {one.against(card)}")


def gpu() -> list[Finding]:
    """What own kernels and captured programs give on this GPU, against torch's own operations; takes minutes."""
    import torch

    if not torch.cuda.is_available():
        return [Finding(NOTE, "GPU", "torch finds no CUDA device here: nothing to check")]
    if not kernels.available():
        return [Finding(NOTE, "GPU", f"no Triton here, or {kernels.SWITCH}=0: everything runs by torch's operations")]
    found: list[Finding] = []
    for family, precision in product(("adm", "ddpm"), get_args(Precision)):
        for check in selfcheck.elsewhere(family, Compute("cuda", precision=precision)):
            mark = FINE if check.right else WRONG
            found.append(Finding(mark, f"{family} {precision}", f"{check} ({check.seconds:.1f} s)"))
    return found


def _cpu() -> Iterator[Finding]:
    found = receipts.cpu().get("flags", "").split()
    words = {"AVX2": "avx2", "AVX-512": "avx512f", "bf16 (AVX-512)": "avx512_bf16", "bf16 (AMX)": "amx_bf16"}
    has = [name for name, flag in words.items() if flag in found]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = f"has {', '.join(has) or 'none of ' + ', '.join(words)}" if found else "features unknown here"
    yield Finding(FINE, "CPU", f"{cores} cores for this process; {known}")


def _packages() -> Iterator[Finding]:
    for name, why in (
        ("snakemake", "the parallel engine"),
        ("dvc", "the store of artifacts and the one-machine engine"),
        ("matplotlib", "figures"),
        ("scikit-learn", "the digits"),
    ):
        try:
            yield Finding(FINE, name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(WRONG, name, f"not installed ({why}); run make install")


def _git_state() -> Iterator[Finding]:
    revision = _git("rev-parse", "--short", "HEAD")
    if revision is None:
        yield Finding(NOTE, "git", "not a repository, or no git: DVC needs one to record artifacts")
    else:
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        yield Finding(FINE, "git", f"at {revision}" + (", with changes that are not committed" if dirty else ""))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _store(studies: Iterable[str]) -> Iterator[Finding]:
    if not Path(".dvc").is_dir():
        yield Finding(WRONG, "store", "no .dvc here: run this in the project's root, or dvc init")
        return
    try:
        recorded = dvc_files.recorded(studies)
    except UserError as error:
        yield Finding(WRONG, "store", str(error))
        return
    text = f"{len(recorded)} files are recorded in dvc.lock" if recorded else "nothing is recorded yet in a dvc.lock"
    yield Finding(FINE if recorded else NOTE, "store", text)


GAMMAS = {
    "cifar10": "0.1 in the paper's tables, 0.15 in the official README's command and in the released checkpoint",
    "imagenet32": "0.1",
    "lsun": "0.1",
    "celeba": "0.1",
    "ffhq": "0.1",
}
"""Published strengths of input perturbation, by the reader of the data set (forever208/DDPM-IP, README and code)."""


def _gamma(params: config.Params) -> Iterator[Finding]:
    """The study's strengths beside the published ones."""
    for name, dataset in params.datasets.items():
        if (published := GAMMAS.get(dataset.source.reader)) is not None:
            text = f"gamma of {name} is {dataset.strengths.gamma}; published: {published}"
            yield Finding(FINE, "gamma", text)


def _data(params: config.Params, name: str) -> Iterator[Finding]:
    """Whether a data set is made, or can be made from what is here."""
    source = params.dataset(name).source
    raw, archives = source.raw, params.archives(source)
    if Path(f"data/{name}/recipe.json").exists():
        yield Finding(FINE, name, "images are prepared")
    elif archives:
        yield from (_archive(name, archive) for archive in archives)
        if source.reader == "ffhq":
            path = place(Archive(file=ffhq_list.NAME))
            here = f"{path} is here: `ipdiff prepare` holds each image against it"
            without = f"{path} is not here: without it no image is held against its published digest"
            yield Finding(FINE, name, here) if path.exists() else Finding(NOTE, name, without)
    elif raw is None:
        yield Finding(FINE, name, "images come with a package: nothing to get")
    elif Path(raw).exists():
        yield Finding(FINE, name, f"{raw} is here", raw)
    else:
        yield Finding(MISSING, name, f"{raw} is not here: put it there, or `ipdiff pull` the data set", raw)


def _archive(name: str, archive: Archive) -> Finding:
    """Whether a published file is here, with the right size; `prepare` also looks at its digest."""
    path = place(archive)
    if path.exists():
        if archive.size in (None, path.stat().st_size):
            return Finding(FINE, name, f"{path} is here", str(path))
        return Finding(WRONG, name, f"{path} has {path.stat().st_size} bytes of {archive.size}; get it again")
    if archive.url is not None:
        places = ", or ".join([archive.url, *archive.mirrors])
        return Finding(NOTE, name, f"{path} is not here: `ipdiff prepare` downloads it from {places}")
    return Finding(MISSING, name, f"{path} is not here: {archive.how}")


def _network(spec: Inception) -> Finding:
    """Whether an Inception network is here, and the right one."""
    about = "Inception"
    try:
        path = inception_file.find(spec)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return Finding(MISSING, about, f"the Inception network {spec.raw} cannot be read: {error.strerror}")
    except UserError as error:
        return Finding(MISSING, about, f"the Inception network {error}")
    if spec.raw is None and found != spec.sha256:
        text = f"{path} is not the Inception network: sha256 {found}, expected {spec.sha256}; get it again"
        return Finding(WRONG, about, text)
    return Finding(FINE, about, f"the Inception network is {path}" + ("" if spec.raw else ", verified"))


def _named(about: str, spec: TorchScript) -> Finding:
    """Whether the network that a data set names is here, and the right one."""
    try:
        with Path(spec.path).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return Finding(MISSING, about, f"the network {spec.path} cannot be read: {error.strerror}", spec.path)
    if found != spec.sha256:
        return Finding(WRONG, about, f"{spec.path} has the sha256 {found}, expected {spec.sha256}")
    return Finding(FINE, about, f"the network is {spec.path}, verified")


def _disk() -> Iterator[Finding]:
    usage = shutil.disk_usage(".")
    text = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.0f} GB"
    yield Finding(FINE if usage.free > 2e9 else WRONG, "disk", text)
