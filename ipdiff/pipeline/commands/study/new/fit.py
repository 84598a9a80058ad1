"""What fits a time budget: which network, how many updates, how many samples at which T'.

The time of a choice follows from the machine's measured speed and is predicted in one place (`Choice.times`); a choice
is the largest whose time is within the budget.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ipdiff.errors import UserError
from ipdiff.pipeline.commands.study.new.presets import Preset

CHAINS = ((5, 10, 20, 50, 100), (5, 10, 20, 50), (5, 10, 20), (5, 10))
"""T' to sample with, the most that is affordable; the paper's claim is about few steps."""
GOOD, FEWEST = 1000, 64
"""Samples a set that are worth a wider network or a further T', and those below which no distance says anything."""
LEAST_UPDATES = 50
"""Updates below which a network has learnt nothing."""
MOST_SAMPLES = 10_000
FULL_SAMPLES = 50_000
"""Samples a set at most; the paper's with the full network."""
DRIFT_IMAGES = (32, 1000)
"""Images whose chains are followed by the stage `drift`: at least, at most."""
DRIFT_CALLS = 3
"""Network calls of `drift` for each step of the chain (plan counts them so)."""
TRAINING, FOLLOWING = 0.6, 0.05
"""Shares of the time that training and `drift` get; sampling and measuring have the rest."""
RESERVE = 0.85
"""Share of the budget that is planned with; speeds were measured on a machine that did nothing else."""
SHARING = 0.8
"""Speed of a core while all others work as well, as a share of its speed alone."""
START, CELL = 10.0, 0.7
"""Seconds before the first cell begins, and that each takes besides its work."""
CLASSIFIER_SHARE = 0.05
CLASSIFIER_STEPS = (50, 300)
"""Share of the budget that the feature network's own training may take, and its updates: at least, at most."""


@dataclass(frozen=True)
class Speed:
    """How fast a preset's network runs on this machine.

    Attributes:
        train: images/s of training, by one process.
        sample: image-steps/s of sampling.
        measured: False where it was scaled by arithmetic from a narrower network's.
    """

    preset: Preset
    train: float
    sample: float
    measured: bool = True


@dataclass(frozen=True)
class Work:
    """What there is to do, whatever the network.

    Attributes:
        images: pictures of the data set.
        gammas: strengths of input perturbation, 0 among them: a model each.
        seeds: training seeds of each model.
        jobs: cells that this machine runs at a time.
        prepare: seconds of reading all pictures.
        classifier: seconds of one update of the feature network; 0 where there is none to train.
        feature: seconds of an image's features.
        distance: seconds of all Frechet distances of one sample set.
    """

    images: int
    gammas: Sequence[float]
    seeds: int
    jobs: int
    prepare: float
    classifier: float
    feature: float
    distance: float

    @property
    def runs(self) -> int:
        """Training runs."""
        return len(self.gammas) * self.seeds

    @property
    def parallel(self) -> float:
        """How many times as fast the runs are made together as one after another."""
        together = min(self.jobs, self.runs)
        return max(1.0, together * SHARING)

    def serial(self, classifier_steps: int) -> float:
        """Seconds before the first run can begin, and of the report."""
        reference = self.images * self.feature + self.distance
        return START + self.prepare + classifier_steps * self.classifier + reference

    def cells(self, chains: int) -> float:
        """Seconds that starting the cells of all runs takes, on one core."""
        return CELL * self.runs * (2 + 2 * chains) + CELL * len(self.gammas)


@dataclass(frozen=True)
class Choice:
    """A study that fits.

    Attributes:
        speed: of the chosen network.
        updates: optimiser updates of each run.
        steps: T' of the samples, ascending.
        samples: images of each sample set.
        drift_images: images that the stage `drift` follows.
        classifier_steps: updates of the feature network, where one is trained.
    """

    work: Work
    speed: Speed
    updates: int
    steps: tuple[int, ...]
    samples: int
    drift_images: int
    classifier_steps: int

    @property
    def preset(self) -> Preset:
        """The chosen network."""
        return self.speed.preset

    @property
    def drift_steps(self) -> int:
        """T' of the chain that `drift` follows."""
        return self.steps[1]

    @property
    def times(self) -> dict[str, float]:
        """Seconds of each kind of work, by one process after another."""
        work, speed = self.work, self.speed
        sets = work.runs * len(self.steps)
        follow = len(work.gammas) * self.drift_images * DRIFT_CALLS * self.drift_steps / speed.sample
        return {
            "training": work.runs * self.updates * self.preset.batch / speed.train,
            "sampling": work.runs * self.samples * sum(self.steps) / speed.sample + follow,
            "measuring": sets * (self.samples * work.feature + work.distance),
            "the rest": work.serial(self.classifier_steps) + work.cells(len(self.steps)),
        }

    @property
    def one_by_one(self) -> float:
        """Seconds with one process (`dvc repro`)."""
        return sum(self.times.values())

    @property
    def seconds(self) -> float:
        """Seconds with as many processes as this machine has room for (`snakemake --cores all`)."""
        serial = self.work.serial(self.classifier_steps)
        return serial + (self.one_by_one - serial) / self.work.parallel


def fit(work: Work, speeds: Sequence[Speed], budget: float, *, smaller: bool = True) -> Choice:
    """The largest study that is made within the budget.

    More time never gives a narrower network, and with the same network never fewer updates or T', nor fewer samples at
    the same T'.

    Args:
        work: what there is to do.
        speeds: of the networks to choose from, narrowest first.
        budget: seconds.
        smaller: whether there are networks for smaller images.

    Raises:
        UserError: not even the least there is to do fits; the line says what would.
    """
    for speed in reversed(speeds):
        for steps in CHAINS:
            if choice := _filled(work, speed, steps, budget, GOOD, max(speed.preset.worth, LEAST_UPDATES)):
                return choice
    if choice := _least(work, speeds[0], budget):
        return choice
    needed = budget
    while not _least(work, speeds[0], needed):
        needed = 60 * math.ceil(needed * 1.1 / 60)
    raise UserError(
        f"--budget {duration(budget)} is too short for {len(work.gammas)} gammas x {work.seeds} seeds here; give about "
        f"{duration(needed)}, or fewer --gammas or --seeds" + ", or a smaller --size" * smaller
    )


def training_room(work: Work, budget: float) -> float:
    """Seconds of one process that all training may take at most."""
    return max(0.0, TRAINING * _room(work, budget))


def _room(work: Work, budget: float) -> float:
    """Seconds of one process that are left for the runs."""
    return (RESERVE * budget - work.serial(_classifier_steps(work, budget))) * work.parallel


def _least(work: Work, speed: Speed, budget: float) -> Choice | None:
    return _filled(work, speed, CHAINS[-1], budget, FEWEST, LEAST_UPDATES)


def _classifier_steps(work: Work, budget: float) -> int:
    least, most = CLASSIFIER_STEPS
    if not work.classifier:
        return most
    return max(least, int(min(most, CLASSIFIER_SHARE * budget / work.classifier)))


def _filled(
    work: Work, speed: Speed, steps: tuple[int, ...], budget: float, fewest: int, least_updates: int
) -> Choice | None:
    """The most that a network does within the budget at these T'; None where that is too few samples or updates."""
    preset, runs, models = speed.preset, work.runs, len(work.gammas)
    room = _room(work, budget) - work.cells(len(steps))
    updates = _rounded(min(preset.most, int(TRAINING * room * speed.train / (preset.batch * runs))))
    follow = models * DRIFT_CALLS * steps[1] / speed.sample
    least, most = DRIFT_IMAGES
    followed = min(work.images, most, max(least, int(FOLLOWING * room / follow)))
    rest = (1 - TRAINING) * room - followed * follow - runs * len(steps) * work.distance
    each = runs * (sum(steps) / speed.sample + len(steps) * work.feature)
    samples = _rounded(min(FULL_SAMPLES if preset.name == "full" else MOST_SAMPLES, int(rest / each)))
    if updates < least_updates or samples < fewest:
        return None
    return Choice(work, speed, updates, steps, samples, followed, _classifier_steps(work, budget))


def _rounded(count: int) -> int:
    """The next lower number of two digits and zeros."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


_UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}


def seconds_of(text: str) -> float:
    """Read a duration: `2h`, `1h30min`, `90m`, `45s`, `1.5d`. Raises UserError for anything else."""
    part = r"(\d+(?:\.\d+)?)(d|h|min|m|s)"
    if not re.fullmatch(f"(?:{part})+", text):
        raise UserError(f"--budget is '{text}'; write days, hours, minutes, seconds, e.g. 2h, 90min or 1d12h")
    total = sum(float(number) * _UNITS[unit] for number, unit in re.findall(part, text))
    if not total > 0:
        raise UserError(f"--budget is '{text}'; use more than 0")
    return total


def duration(seconds: float) -> str:
    """A duration for people: `45 s`, `12 min`, `3.5 h`, `2 days`, as `seconds_of` reads it without the space."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.95 * size:
            value = seconds / size
            return f"{value:.0f}{unit}" if value >= 9.95 or abs(value - round(value)) < 0.05 else f"{value:.1f}{unit}"
    return f"{math.ceil(seconds)}s"
