"""Which settings make the bytes of the digits study the same on other CPUs: `python -m benchmarks.cpus [UPDATES]`.

Some updates of a digits run, a network call of sampling, and the linear algebra of a Frechet distance are computed
on this machine, as it is and with the settings of examples/portable.env; and, where qemu-x86_64 (Debian: qemu-user) is
installed, with those settings on an emulated Intel Haswell and an emulated AMD EPYC Rome. Equal digests: equal bits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from benchmarks.rows import ROOT, STAGE

EMULATED = ("Haswell", "EPYC-Rome")


def portable() -> dict[str, str]:
    """The settings of examples/portable.env."""
    lines = (ROOT / "examples/portable.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compute(updates: int) -> None:
    """Print a digest a line, on the CPU and with the settings that this process has."""
    import numpy as np
    import torch
    from scipy import linalg

    from ipdiff.nets.inference import prepare_for_sampling
    from ipdiff.pipeline import config
    from ipdiff.training.host_feeder import HostFeeder
    from ipdiff.training.run import Run

    def told(name: str, arrays: Iterable[np.ndarray]) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        print(f"{name}\t{digest.hexdigest()[:8]}", flush=True)

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 64))
    covariance = rows.T @ rows
    told("exp and log", [np.exp(rows), np.log(np.abs(rows))])
    told("covariance", [covariance])
    values, vectors = np.linalg.eigh(covariance)
    told("its root", [values, vectors, np.asarray(linalg.svdvals(covariance))])
    spec = config.load(ROOT / "params.yaml").run_spec("digits", "adm-ip", 0)
    run = Run(spec, rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    feeder = HostFeeder(run)
    for _ in range(updates):
        feeder.advance()
    told(f"{updates} updates", [value for _, value in sorted(run.state().items())])
    net = prepare_for_sampling(run.net.eval(), memory_format=run.format)
    x = torch.from_numpy(rng.standard_normal((25, 1, 8, 8)).astype(np.float32))
    with torch.inference_mode():
        told("network call", [net(x, torch.full((25,), 7)).numpy()])


def digests(updates: int, settings: dict[str, str], cpu: str | None = None) -> dict[str, str]:
    """What `compute` says in a process with these settings, on this CPU or an emulated one."""
    command = [sys.executable, "-m", "benchmarks.cpus", "--compute", str(updates)]
    if cpu is not None:  # an emulated process has to start the interpreter itself, not the link to it
        command = ["qemu-x86_64", "-cpu", cpu, "-0", sys.executable, os.path.realpath(sys.executable), *command[1:]]
    inherited = {name: value for name, value in os.environ.items() if name not in portable()}
    environment = {**inherited, **STAGE, "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return dict(line.split("\t") for line in done.stdout.splitlines())


def main(updates: int) -> None:
    """Print a table: what, and its digest on each CPU."""
    columns = {"this machine": digests(updates, {}), "portable": digests(updates, portable())}
    if shutil.which("qemu-x86_64"):
        columns |= {f"portable, {cpu}": digests(updates, portable(), cpu) for cpu in EMULATED}
    else:
        print("qemu-x86_64 is not installed (Debian: qemu-user): no other CPU to compare with")
    print(f"{'':14}" + "".join(f"{name:>22}" for name in columns))
    for what in columns["this machine"]:
        print(f"{what:14}" + "".join(f"{column[what]:>22}" for column in columns.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compute"]:
        compute(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
