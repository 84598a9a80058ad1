"""One command measures everything: `python -m benchmarks [--quick] [--only PART] [--gpu-tests] [--json FILE]`.

Prints tables: the speed of training and sampling (what, ours, arithmetic, limit measured in the same run, ratio), what
measuring costs and how long commands take to start (what, ours, limit or goal, ratio), how the cost grows, and how
nearly the steps of other code bases are ours; and writes them all as JSON with the machine they were measured on. Where
a GPU is, the paper's networks are measured there. `--peers` measures other tools beside this one instead, on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import agreement, configurations, metrics, peers, scaling, startup
from benchmarks.rows import Row, as_json, describe
from ipdiff.errors import UserError
from ipdiff.pipeline.commands.study import bench
from ipdiff.pipeline.commands.study.bench import Measured
from ipdiff.pipeline.store import receipts

PARTS = ("speed", "metrics", "startup", "scaling", "agreement")


def machine(threads: int) -> dict[str, object]:
    """What the numbers belong to, with the load that others put on it."""
    return {
        **receipts.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def speeds(threads: int, seconds: float, quick: bool) -> list[Measured]:
    """Training and sampling of every configuration that this machine has room for."""
    rows: list[Measured] = []
    for name, spec, sample_batch in configurations.all_of(threads, quick):
        try:
            rows += bench.measure(name, spec, sample_batch, seconds)
        except (UserError, RuntimeError) as error:  # no memory, no capture: the others are still worth measuring
            print(f"{name}: not measured: {str(error).strip().splitlines()[0]}")
            continue
        finally:
            _release()
        print(bench.describe(rows[-2:]).splitlines()[-2], bench.describe(rows[-1:]).splitlines()[-1], sep="\n")
    return rows


def printed(rows: Iterable[Row]) -> list[dict[str, float | str]]:
    """Rows as plain data, each printed as soon as it is measured."""
    print(describe([]))
    found: list[Row] = []
    for row in rows:
        print(describe([row]).splitlines()[-1], flush=True)
        found.append(row)
    return as_json(found)


def beside_peers(official: Path | None, threads: int, turns: int, quick: bool) -> dict[str, object]:
    """Other tools beside this one, each row printed as soon as it is measured; and which were left out, and why."""
    left_out = peers.missing(official)
    for peer, why in left_out.items():
        print(f"{peer}: left out: {why}")
    print(peers.describe([]))
    rows: list[peers.Turns] = []
    for row in peers.table(official, threads, turns, quick):
        print(peers.describe([row]).splitlines()[-1], flush=True)
        rows.append(row)
    return {"peers": peers.as_json(rows), "left out": left_out}


def _release() -> None:
    """Give the memory of one configuration back before the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny networks for a moment each: does it run at all?")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for a configuration (default: 60)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the wide networks on the CPU")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be repeated; default: all)")
    parser.add_argument("--json", type=Path, default=Path("work/benchmarks.json"), help="where to write everything")
    parser.add_argument("--gpu-tests", action="store_true", help="run tests/gpu first, and stop if one of them fails")
    parser.add_argument("--peers", action="store_true", help="other tools beside this one, in turns, and nothing else")
    parser.add_argument("--official", type=Path, metavar="DIR", help="with --peers: a copy of the authors' repository")
    parser.add_argument("--turns", type=int, default=7, help="with --peers: pairs of turns of each (default: 7)")
    args = parser.parse_args()
    if args.turns < 1:
        parser.error(f"--turns is {args.turns}; use 1 or more")
    if args.official is not None and (found_none := peers.refused(args.official)):
        parser.error(found_none)
    if args.gpu_tests and (failed := subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/gpu"]).returncode):
        sys.exit(failed)
    seconds = 0.1 if args.quick else args.seconds
    found: dict[str, object] = {"machine": machine(args.threads)}
    print(json.dumps(found["machine"]))
    parts = args.only or (() if args.peers else PARTS)
    if args.peers:
        found |= beside_peers(args.official, args.threads, 1 if args.quick else args.turns, args.quick)
    if "speed" in parts:
        print(bench.describe([]))
        if torch.cuda.is_available():
            found["normals"] = bench.normals(torch.device("cuda"), 1.0)
            print(f"normals drawn on the GPU: {found['normals']:.3g} a second")
        found["speed"] = bench.as_json(speeds(args.threads, seconds, args.quick))
    if "metrics" in parts:
        found["metrics"] = printed(metrics.table(args.threads, seconds / 3, args.quick))
    if "startup" in parts:
        found["startup"] = printed(startup.table(args.quick))
    if "scaling" in parts:
        rows = scaling.table(seconds / 10, args.quick)
        found["scaling"] = rows
        print(scaling.describe(rows))
    if "agreement" in parts and not args.quick:  # nothing there is a matter of speed
        compared = agreement.table()
        found["agreement"] = agreement.as_json(compared)
        print(agreement.describe(compared))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
