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
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ipdiff import config, dvcfile, inception
from ipdiff.data.raw import place
from ipdiff.errors import UserError
from ipdiff.spec import Archive, Dataset

FINE, NOTE, WRONG = "ok", "note", "lacks"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and what to do where something is lacking."""

    mark: str
    about: str
    text: str

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.mark:<6}{self.about:<14}{self.text}"


def examine(study: str | None = None) -> list[Finding]:
    """Look at everything; a check that fails is a finding, not an end.

    Args:
        study: what its data sets need and is not here counts as lacking; the default study's if None. For other
            data sets it is only said.

    Raises:
        UserError: there is no such study.
    """
    findings = [*_python(), *_torch(), *_cpu(), *_packages(), *_git_state(), *_disk()]
    try:
        params = config.load()
    except UserError as error:
        return [*findings, Finding(WRONG, "params.yaml", str(error).removeprefix("params.yaml "))]
    text = f"{len(params.datasets)} data sets; studies {', '.join(params.studies)}"
    findings += [Finding(FINE, "params.yaml", text), *_store(params)]
    needed = set(params.study(study or dvcfile.DEFAULT_STUDY).datasets)
    for name, dataset in params.datasets.items():
        missing = WRONG if name in needed else NOTE
        findings += [*_data(params, name, missing), *_network(name, dataset, missing)]
    return findings


def _python() -> Iterator[Finding]:
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
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        text = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each"
        yield Finding(FINE, "CUDA", f"{text}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    else:
        yield Finding(NOTE, "CUDA", "no device: everything runs on the CPU, days to weeks for the paper's networks")


def _cpu() -> Iterator[Finding]:
    found = _cpu_flags()
    words = {"AVX2": "avx2", "AVX-512": "avx512f", "bf16 (AVX-512)": "avx512_bf16", "bf16 (AMX)": "amx_bf16"}
    has = [name for name, flag in words.items() if flag in found]
    known = f"has {', '.join(has) or 'none of ' + ', '.join(words)}" if found else "features unknown here"
    yield Finding(FINE, "CPU", f"{_cores()} cores for this process; {known}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _store(params: config.Params) -> Iterator[Finding]:
    if not Path(".dvc").is_dir():
        yield Finding(WRONG, "store", "no .dvc here: run this in the project's root, or dvc init")
        return
    try:
        recorded = dvcfile.recorded(params.studies)
    except UserError as error:
        yield Finding(WRONG, "store", str(error))
        return
    text = f"{len(recorded)} files are recorded in dvc.lock" if recorded else "nothing is recorded yet in a dvc.lock"
    yield Finding(FINE if recorded else NOTE, "store", text)


def _data(params: config.Params, name: str, missing: str) -> Iterator[Finding]:
    """Whether a data set is made, or can be made from what is here."""
    source = params.dataset(name).source
    raw, archives = source.raw, params.archives(source)
    if Path(f"data/{name}/recipe.json").exists():
        yield Finding(FINE, name, "images are prepared")
    elif archives:
        yield from (_archive(name, archive, missing) for archive in archives)
    elif raw is None:
        yield Finding(FINE, name, "images come with a package: nothing to get")
    elif Path(raw).exists():
        yield Finding(FINE, name, f"{raw} is here")
    else:
        yield Finding(missing, name, f"{raw} is not here: put it there, or `ipdiff pull` the data set")


def _archive(name: str, archive: Archive, missing: str) -> Finding:
    """Whether a published file is here, with the right size; `prepare` also looks at its digest."""
    path = place(archive)
    if path.exists():
        if archive.size in (None, path.stat().st_size):
            return Finding(FINE, name, f"{path} is here")
        return Finding(WRONG, name, f"{path} has {path.stat().st_size} bytes of {archive.size}; get it again")
    if archive.url is not None:
        return Finding(NOTE, name, f"{path} is not here: `ipdiff prepare` downloads it from {archive.url}")
    return Finding(missing, name, f"{path} is not here: {archive.how}")


def _network(name: str, dataset: Dataset, missing: str) -> Iterator[Finding]:
    """Whether a data set's Inception network is here, and the right one."""
    if dataset.features != "inception":
        return
    spec = dataset.inception
    try:
        path = inception.find(spec)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        yield Finding(missing, name, f"its Inception network {spec.raw} cannot be read: {error.strerror}")
    except UserError as error:
        yield Finding(missing, name, f"its Inception network {error}")
    else:
        if spec.raw is None and found != spec.sha256:
            text = f"{path} is not its Inception network: sha256 {found}, expected {spec.sha256}; get it again"
            yield Finding(WRONG, name, text)
        else:
            yield Finding(FINE, name, f"its Inception network is {path}" + ("" if spec.raw else ", verified"))


def _disk() -> Iterator[Finding]:
    usage = shutil.disk_usage(".")
    text = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.0f} GB"
    yield Finding(FINE if usage.free > 2e9 else WRONG, "disk", text)
