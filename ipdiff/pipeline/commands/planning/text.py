"""A plan in words: a line a verb, the total, the memory, the waiting, and what all that was assumed from."""

from __future__ import annotations

from collections.abc import Iterator

from ipdiff.pipeline.commands.planning.plan import Cost, Plan
from ipdiff.pipeline.commands.planning.rates import Named
from ipdiff.pipeline.commands.store.verify import bytes_text

WIDTHS = (7, 9, 17, 19, 13, 12, 11)
"""Of the columns of numbers."""
HOUR, GB = 3600, 10**9


def describe(plan: Plan) -> str:
    """A plan as text, for people."""
    return "\n".join([*_costs(plan), *_memory(plan), *_hours(plan), *_left_out(plan)])


def _costs(plan: Plan) -> Iterator[str]:
    yield _columns("stage", "cells", "to make", "images", "evaluations", "PFLOP", "hours", "disk")
    for verb, cost in {**plan.verbs, "total": plan.total}.items():
        yield _line(verb, cost)
    yield f"train states in work/ meanwhile: {_size(plan.states)}"


def _line(name: str, cost: Cost) -> str:
    work, hours = cost.flops / 1e15, cost.seconds / HOUR
    counts = (cost.cells, cost.missing, cost.images, cost.evaluations)
    return _columns(
        name, *map(_number, counts), _number(work, 1 if work > 10 else 3), _number(hours, 1), _size(cost.bytes)
    )


def _memory(plan: Plan) -> Iterator[str]:
    """Of training on a GPU, against that of the device that was named."""
    known = plan.rates.device.memory * GB if isinstance(plan.rates, Named) else None
    for one in plan.memory:
        yield f"GPU memory of training {one.name}: {one.against(known)}"


def _hours(plan: Plan) -> Iterator[str]:
    rates = plan.rates
    if rates is None:
        yield (
            "hours: name a device with --device, or give a measured speed with --speed DATASET=TRAIN,SAMPLE "
            "(ipdiff bench measures it)"
        )
        return
    yield f"hours: {rates}"
    if not plan.total.seconds:
        return
    yield (
        f"together: {_range(plan.total.least, plan.total.seconds, plan.total.most)} of one device; with {plan.devices} "
        f"at work, each on a cell of its own, done after {_range(*plan.wall_clock)}"
    )
    yield (
        f"longest chain: {len(plan.chain)} cells that wait for each other, {_time(plan.chain_seconds)}, from "
        f"{plan.chain[0]} to {plan.chain[-1]}; more devices do not shorten it"
    )
    if isinstance(rates, Named) and not rates.device.bfloat16:
        yield f"{rates.name} has no bfloat16: set precision: float16 in params.yaml"


def _left_out(plan: Plan) -> Iterator[str]:
    if plan.unmeasured:
        parts = "; ".join(f"{verb} of {', '.join(names)}" for verb, names in plan.unmeasured.items())
        yield f"no hours, since they are computed in another precision or on another kind of device: {parts}"
    if plan.uncounted:
        yield f"not counted, a feature network of the user's own: {', '.join(plan.uncounted)}"
    if plan.unknown:
        yield f"not counted, since their number of images is not known yet: {', '.join(plan.unknown)}"
    yield from plan.missing


def _range(least: float, likely: float, most: float) -> str:
    if f"{least:.2g}" == f"{most:.2g}":
        return _time(likely)
    return f"{_time(likely)} ({_time(least)} to {_time(most)})"


def _time(seconds: float) -> str:
    """For people: hours, or days where they are many."""
    hours = seconds / HOUR
    return f"{hours / 24:,.0f} days" if hours >= 240 else f"{hours:.3g} h"


def _columns(name: str, *texts: str) -> str:
    return f"{name:<11}" + "".join(f"{text:>{width}}" for text, width in zip(texts, WIDTHS, strict=True))


def _number(value: float, places: int = 0) -> str:
    return f"{value:,.{places}f}" if value else ""


def _size(size: int) -> str:
    return bytes_text(size) if size else ""
