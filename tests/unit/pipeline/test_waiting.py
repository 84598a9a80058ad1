"""Jobs that wait for each other, against all orders in which they could be done."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from ipdiff.pipeline.commands.planning.waiting import longest_chain, wall_clock

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def jobs(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Up to five jobs, each of which may wait for any before it."""
    count = draw(st.integers(1, 5))
    names = "abcde"[:count]
    needs = {name: [other for other in names[:i] if draw(st.booleans())] for i, name in enumerate(names)}
    return {name: float(draw(st.integers(0, 5))) for name in names}, needs


def by_order(order: tuple[str, ...], seconds: dict[str, float], needs: dict[str, list[str]], devices: int) -> float:
    """When all is done if the jobs are started in this order, each as soon as it can be."""
    free, done = [0.0] * devices, dict[str, float]()
    for job in order:
        able = max((done[maker] for maker in needs[job]), default=0.0)
        if not seconds[job]:
            done[job] = able
            continue
        device = min(range(devices), key=free.__getitem__)
        done[job] = free[device] = max(free[device], able) + seconds[job]
    return max(done.values())


@given(st.composite(jobs)(), st.integers(1, 3))
def test_no_schedule_is_shorter_than_work_and_chain_allow(
    case: tuple[dict[str, float], dict[str, list[str]]], devices: int
) -> None:
    seconds, needs = case
    chain, time = longest_chain(seconds, needs), wall_clock(seconds, needs, devices)
    length, work = sum(seconds[job] for job in chain), sum(seconds.values())
    assert max(length, work / devices) <= time <= length + (work - length) / devices + 1e-9  # Graham's bound
    orders = [
        order
        for order in permutations(needs)
        if all(order.index(maker) < order.index(job) for job in needs for maker in needs[job])
    ]
    assert time >= min(by_order(order, seconds, needs, devices) for order in orders)
    assert wall_clock(seconds, needs, 1) == work
    assert wall_clock(seconds, needs, len(needs)) == length


def test_the_chain_is_named_from_first_to_last() -> None:
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.0}
    assert longest_chain(seconds, DIAMOND) == ["a", "c"]
    assert wall_clock(seconds, DIAMOND, 2) == 4.0
    assert longest_chain({}, {}) == []
    assert wall_clock({}, {}, 1) == 0.0
