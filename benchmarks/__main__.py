"""One command measures everything: `python -m benchmarks [--quick] [--json FILE]`.

Prints a table (what, ours, arithmetic, limit measured in the same run, ratio) and how the cost grows, and writes both
as JSON with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import configurations, scaling
from ipdiff import bench, receipts
from ipdiff.bench import Measured


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
        rows += bench.measure(name, spec, sample_batch, seconds)
        print(bench.describe(rows[-2:]).splitlines()[-2], bench.describe(rows[-1:]).splitlines()[-1], sep="\n")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny networks for a moment each: does it run at all?")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for a configuration (default: 60)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the wide networks on the CPU")
    parser.add_argument("--no-scaling", action="store_true", help="leave out how the cost grows")
    parser.add_argument("--json", type=Path, default=Path("work/benchmarks.json"), help="where to write everything")
    args = parser.parse_args()
    seconds = 0.1 if args.quick else args.seconds
    found: dict[str, object] = {"machine": machine(args.threads)}
    print(json.dumps(found["machine"]))
    print(bench.describe([]))
    found["speed"] = bench.as_json(speeds(args.threads, seconds, args.quick))
    if not args.no_scaling:
        rows = scaling.table(seconds / 10, args.quick)
        found["scaling"] = rows
        print(scaling.describe(rows))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
