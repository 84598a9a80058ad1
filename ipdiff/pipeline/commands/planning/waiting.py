"""How long jobs take that wait for each other: the longest chain, and all of them on so many devices."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

Needs = Mapping[str, Sequence[str]]
"""Job -> the jobs that must be done before it; makers stand before users."""


def longest_chain(seconds: Mapping[str, float], needs: Needs) -> list[str]:
    """The jobs of the chain that takes longest, first to last; empty where nothing takes any time."""
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for job, makers in needs.items():
        before[job] = max(makers, key=ends.__getitem__, default=None)
        ends[job] = seconds[job] + max((ends[maker] for maker in makers), default=0.0)
    job = max(ends, key=ends.__getitem__, default=None)
    chain: list[str] = []
    while job is not None:
        chain.append(job)
        job = before[job]
    return [job for job in reversed(chain) if seconds[job]]


def wall_clock(seconds: Mapping[str, float], needs: Needs, devices: int) -> float:
    """Seconds until all is done, a job on one device at a time; jobs that take no time need none.

    Of the jobs that can start the one with the longest chain before it does: what a good scheduler comes to.
    """
    users: dict[str, list[str]] = {job: [] for job in needs}
    for job, makers in needs.items():
        for maker in makers:
            users[maker].append(job)
    left: dict[str, float] = {}
    for job in reversed(list(needs)):
        left[job] = seconds[job] + max((left[user] for user in users[job]), default=0.0)
    waits = {job: len(makers) for job, makers in needs.items()}
    ready: list[tuple[float, str]] = []
    running: list[tuple[float, str]] = []

    def start(jobs: Iterable[str]) -> None:
        """Take jobs that wait for nothing any more; those without time are done at once."""
        stack = list(jobs)
        while stack:
            if seconds[job := stack.pop()]:
                heapq.heappush(ready, (-left[job], job))
            else:
                stack += released(job)

    def released(job: str) -> list[str]:
        for user in users[job]:
            waits[user] -= 1
        return [user for user in users[job] if not waits[user]]

    start([job for job, count in waits.items() if not count])
    now = 0.0
    while ready or running:
        while ready and len(running) < devices:
            job = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds[job], job))
        now, job = heapq.heappop(running)
        start(released(job))
    return now
