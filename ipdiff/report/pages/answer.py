"""The answer to a study's question: does input perturbation help here? What is said, in words; no layout.

Models with input perturbation are held against the same without it, at equal data set, sampler and protocol, at the
last training steps that the study's tables show.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipdiff.metrics.spec import METRICS
from ipdiff.report import labels
from ipdiff.report.results import grouped
from ipdiff.report.spec import Gamma
from ipdiff.report.tables import layout
from ipdiff.report.tables.entries import Entry, too_few
from ipdiff.report.tables.table import Frame
from ipdiff.report.tables.verdicts import SEPARATES, Verdict, separate
from ipdiff.sample_sets.spec import Sampler

LEADING = ("fid", "sfid")
"""Metrics that answer, where a study has them: the paper's. Where it has neither, all of its metrics do."""

WORDS = ("yes", "mixed", "no", "")
"""What is said of a sampler, in the order in which it is said; nothing where nothing separates."""

CHANCE = (
    "With two training seeds in common, chance alone separates a metric one time in four, and one of several metrics, "
    "gammas or T' more often."
)
"""What a separation by two seeds is worth."""

NARROW, FIXED = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"
"""They keep a mean and its spread, and T' and its value, on one line."""

NOT_ASKED = (
    "No table of this study holds a model with input perturbation against the same model without it, at equal sampler "
    "and training steps."
)


@dataclass(frozen=True)
class Comparison:
    """One metric of a model with input perturbation, and of its like without, under equal conditions."""

    ours: Entry
    base: Entry

    @property
    def differences(self) -> tuple[float, ...]:
        """With minus without, for each training seed that both have."""
        return self.ours.minus(self.base)

    @property
    def says(self) -> Verdict:
        """What the differences say by the stricter rule, `verdicts.separate`."""
        return separate(self.differences, METRICS[self.ours.metric].higher)

    @property
    def gamma(self) -> str:
        """The strength in words."""
        return labels.gamma(self.ours.gamma)

    def share(self) -> float:
        """The mean difference as a share of the mean without; below 0 where it is better."""
        mean, sign = statistics.fmean(self.differences), -1 if METRICS[self.ours.metric].higher else 1
        return sign * mean / (abs(self.base.mean) or 1.0)


@dataclass(frozen=True)
class Answer:
    """The answer for one data set and one model without input perturbation.

    Attributes:
        about: which these are; empty where the study has no others.
        numbers: the metric that answers first, with and without, at the fewest and the most T', with its spread.
        sentence: the answer.
        caution: which metrics are left out, and how far from converged the models are; empty where there is nothing to
            say, or nothing is known.
        base: how the model without input perturbation is called.
        two_seeds: whether something is judged by two training seeds only.
    """

    about: str
    numbers: str
    sentence: str
    caution: str
    base: str
    two_seeds: bool


def answers(frames: Iterable[Frame], unperturbed: Mapping[str, str], named: Mapping[str, str]) -> list[Answer]:
    """The answers of a study's tables; none where they hold nothing against each other that could say it.

    That of the most training seeds leads, so that none without a spread stands before one that has it.

    Args:
        frames: the tables.
        unperturbed: by model with input perturbation, its like without.
        named: how models are called.
    """
    found = comparisons(frames, unperturbed)
    metrics = {one.ours.metric for one in found}
    leading = metrics.intersection(LEADING) or metrics
    groups = grouped(
        (one for one in found if one.ours.metric in leading), lambda one: (one.ours.dataset, one.base.model)
    )
    return [
        _answer(f"{labels.dataset(dataset)}, against {named[base]}" if len(groups) > 1 else "", group, named[base])
        for (dataset, base), group in sorted(groups.items(), key=lambda item: -_most_seeds(item[1]))
    ]


def _most_seeds(group: list[Comparison]) -> int:
    """The most training seeds that one of them is judged by."""
    return max(len(one.differences) for one in group)


def _answer(about: str, group: list[Comparison], base: str) -> Answer:
    """Metrics whose covariances are singular do not decide it."""
    fit = [one for one in group if not one.ours.singular]
    few = too_few(one.ours for one in group)
    left = f"Left out of the answer, for a covariance of fewer images than features is singular: {few}." if few else ""
    caution = " ".join(text for text in (left, _caution(fit or group)) if text)
    sentence = _sentence(fit) if fit else "Not known, for no metric that answers has as many images as features."
    return Answer(about, _numbers(fit or group), sentence, caution, base, any(len(one.differences) == 2 for one in fit))


def rule(found: Sequence[Answer]) -> str:
    """By what rule the answers are given."""
    if not found:
        return NOT_ASKED
    bases = list(dict.fromkeys(one.base for one in found))
    said = (
        f"{_words(bases)} {'is' if len(bases) == 1 else 'are'} trained without input perturbation (gamma 0). "
        f"Yes and no are said where two models separate: {SEPARATES}; mixed where metrics or gammas contradict each "
        "other; a metric does not tell where it separates for no gamma. The marks in the tables ask that of the mean "
        "difference alone. Held against each other are models that differ in gamma, with the same sampler, at the last "
        "training steps that the tables show. It is a plain mark of size, no significance test."
    )
    return f"{said} {CHANCE}" if any(one.two_seeds for one in found) else said


def comparisons(frames: Iterable[Frame], unperturbed: Mapping[str, str]) -> list[Comparison]:
    """Each comparison once: at the last training steps, with the most seeds; chains from real images are none."""
    found: dict[tuple[str, ...], Comparison] = {}
    for frame in frames:
        values = [entry for entry in frame.entries if not Sampler.parse(entry.sampler).row.from_images]
        for contest in layout.contests(frame.table, values):
            for one in _pairs(contest, unperturbed, steps=bool(frame.table.points)):
                at = (one.ours.dataset, one.ours.model, one.ours.sampler, one.ours.metric)
                known = found.get(at)
                if known is None or _rank(known) < _rank(one):
                    found[at] = one
    return list(found.values())


def _rank(one: Comparison) -> tuple[int, int]:
    return one.ours.step, len(one.differences)


def _pairs(contest: list[Entry], unperturbed: Mapping[str, str], *, steps: bool) -> Iterable[Comparison]:
    """`steps`: the contest's entries may differ in sampler and training steps, which then have to be equal."""
    for ours in contest:
        for base in contest:
            alike = not steps or (ours.sampler, ours.step) == (base.sampler, base.step)
            if unperturbed.get(ours.model) == base.model and alike and ours.minus(base):
                yield Comparison(ours, base)


def _numbers(group: list[Comparison]) -> str:
    """Both ends of what was measured, so that nothing is chosen by how it came out.

    The first metric, of the gamma with the most seeds, then the most samplers; of the method with the most samplers.
    """
    metric = min((one.ours.metric for one in group), key=list(METRICS).index)
    found = [one for one in group if one.ours.metric == metric]
    by_model = grouped(found, lambda one: one.ours.model).values()
    found = max(by_model, key=lambda ones: (_most_seeds(ones), len(ones)))
    found = max(grouped(found, lambda one: Sampler.parse(one.ours.sampler).method).values(), key=len)
    found.sort(key=lambda one: Sampler.parse(one.ours.sampler).steps)
    ends = found[:1] + found[1:][-1:]
    places = layout.decimals([entry for one in ends for entry in (one.ours, one.base)])[metric]
    said = [
        " and ".join(layout.mean_text(entry, places).replace(" ", NARROW) for entry in (one.ours, one.base))
        + f" at {_where([one.ours.sampler])}".replace("T' = ", f"T'{FIXED}={FIXED}")
        for one in ends
    ]
    counts = sorted({entry.seed_count for one in ends for entry in (one.ours, one.base)})
    spread = f"mean {layout.PLUS_MINUS} standard deviation over {' or '.join(map(str, counts))} training seeds"
    how = [spread if counts[0] > 1 else "one training seed" if counts == [1] else f"{spread}, no spread for 1"]
    how += [text for text in [labels.better({_label(ends[0]): metric})] if text]
    what = f"{_label(ends[0])} with input perturbation (gamma {ends[0].gamma}) and without"
    return f"{what}: {'; '.join(said)} ({'; '.join(how)})."


def _sentence(group: list[Comparison]) -> str:
    judged = [one for one in group if len(one.differences) > 1]
    if not judged:
        return _one_seed(group)
    said = {sampler: _said(ones) for sampler, ones in grouped(judged, lambda one: one.ours.sampler).items()}
    if not any(word for word, _ in said.values()):
        metrics, gammas = _words(map(_label, judged)), _words(one.gamma for one in _ordered(judged))
        return f"Nothing separates at {_where(said)} ({metrics}, gamma {gammas}, {_seeds(judged)})."
    parts = [
        f"at {_where(samplers)} {text}"
        for (_, text), samplers in grouped(
            sorted(said, key=lambda one: WORDS.index(said[one][0])), said.__getitem__
        ).items()
    ]
    text = "; ".join(part for part in (*parts, _best(group, judged)) if part)
    return f"{text[0].upper()}{text[1:]}."


def _said(ones: list[Comparison]) -> tuple[str, str]:
    """Of one sampler: yes, no, mixed or nothing; and that with what each metric says."""
    ones = sorted(_ordered(ones), key=lambda one: list(METRICS).index(one.ours.metric))
    sides = {side: _facts([one for one in ones if one.says == side]) for side in ("better", "worse")}
    better, worse = sides["better"], sides["worse"]
    if better and worse:
        told = (f"{_words(alike)} {fact}" for facts in (better, worse) for fact, alike in facts.items())
        word, text = "mixed", f"mixed ({'; '.join(told)})"
    elif better or worse:
        word = "yes" if better else "no"
        text = f"{word} by {_words(f'{_words(alike)} ({fact})' for fact, alike in (better or worse).items())}"
    else:
        word, text = "", ""
    telling = {label for facts in sides.values() for alike in facts.values() for label in alike}
    silent = [label for label in dict.fromkeys(map(_label, ones)) if label not in telling]
    mute = f"{_words(silent)} {'does' if len(silent) == 1 else 'do'} not tell" if silent else ""
    return word, ", ".join(part for part in (text, mute) if part)


def _facts(ones: list[Comparison]) -> dict[str, list[str]]:
    """`lower for gamma 0.1 in 2 of 2 seeds`, and the metrics of which that holds."""
    facts = {
        label: f"{_way(own[0])} for gamma {_words(one.gamma for one in own)} in {_counts(own)}"
        for label, own in grouped(ones, _label).items()
    }
    return grouped(facts, facts.__getitem__)


def _label(one: Comparison) -> str:
    return one.ours.label


def _way(one: Comparison) -> str:
    return "lower" if statistics.fmean(one.differences) < 0 else "higher"


def _counts(ones: list[Comparison]) -> str:
    counts = {len(one.differences) for one in ones}
    return f"{max(counts)} of {_seeds(ones)}" if len(counts) == 1 else f"each of {_seeds(ones)}"


def _seeds(ones: list[Comparison]) -> str:
    """How many they have: `2 seeds`, `2 or 3 seeds`."""
    return f"{' or '.join(map(str, sorted({len(one.differences) for one in ones})))} seeds"


def _best(group: list[Comparison], judged: list[Comparison]) -> str:
    """Which gamma is best, by the first metric that separates for the better, where all of them were judged."""
    better = [one for one in judged if one.says == "better"]
    if not better:
        return ""
    tried, known = _strengths(group), _strengths(judged)
    if len(tried) == 1:
        return "no other gamma was tried"
    if len(known) == 1:
        others = _words(labels.gamma(gamma) for gamma in tried if gamma not in known)
        return f"no other gamma has more than one seed (tried: {others})"
    metric = min((one.ours.metric for one in better), key=list(METRICS).index)
    samplers = grouped((one for one in judged if one.ours.metric == metric), lambda one: one.ours.sampler)
    common = [ones for ones in samplers.values() if len(_strengths(ones)) == len(known)]
    if not common:
        return "which gamma is best is not known, since no sampler has them all"
    shares = {
        gamma: statistics.fmean(one.share() for ones in common for one in ones if one.ours.gamma == gamma)
        for gamma in known
    }
    best = min(known, key=lambda gamma: shares[gamma])
    others = [labels.gamma(gamma) for gamma in known if gamma != best and not _apart(best, gamma, common)]
    place = {tried[0]: ", the smallest tried", tried[-1]: ", the largest tried"}.get(best, "")
    near = f", by {METRICS[metric].label} not apart from {_words(others)}" if others else ""
    return f"best gamma {labels.gamma(best)}{place}{near}"


def _apart(best: Gamma, other: Gamma, common: list[list[Comparison]]) -> bool:
    """Whether one gamma separates from another one with a sampler at least."""
    for ones in common:
        of = {one.ours.gamma: one.ours for one in ones}
        if separate(of[best].minus(of[other]), METRICS[of[best].metric].higher) == "better":
            return True
    return False


def _one_seed(group: list[Comparison]) -> str:
    said: dict[tuple[str, str], str] = {}
    for at, ones in grouped(_ordered(group), lambda one: (one.gamma, _label(one))).items():
        ways = grouped(ones, _way).items()
        said[at] = ", ".join(f"{way} at {_where(one.ours.sampler for one in own)}" for way, own in ways)
    parts: list[str] = []
    for (gamma, text), alike in grouped(said, lambda at: (at[0], said[at])).items():
        parts.append(
            f"{_words(label for _, label in alike)} of gamma {gamma} {'is' if len(alike) == 1 else 'are'} {text}"
        )
    return f"Not known, for one training seed gives no spread to judge by. {'; '.join(parts)}."


def _caution(group: list[Comparison]) -> str:
    asked = [one for one in group if len(one.differences) > 1] or group
    points = {entry.card: entry for one in asked for entry in (one.ours, one.base) if entry.half_n}
    far = sum(entry.far for entry in points.values())
    if not far:
        return ""
    cases = "all" if far == len(points) else f"{far} of the {len(points)}"
    return (
        f"In {cases} cases that are compared the model is far from converged (see the lines under the tables): what "
        "holds here need not hold for a network that is trained for longer."
    )


def _ordered(ones: Iterable[Comparison]) -> list[Comparison]:
    """By gamma, else in their order."""
    return sorted(ones, key=lambda one: max(one.ours.gamma, default=0.0))


def _strengths(ones: Iterable[Comparison]) -> list[Gamma]:
    """Their gammas, ascending."""
    return list(dict.fromkeys(one.ours.gamma for one in _ordered(ones)))


def _where(samplers: Iterable[str]) -> str:
    """Samplers in words, ascending: `T' = 5 and 10`; others than ancestral ones with their method."""
    ascending = sorted(map(Sampler.parse, dict.fromkeys(samplers)), key=lambda sampler: sampler.steps)
    methods = grouped(ascending, lambda sampler: sampler.method)
    steps = {method: _words(str(sampler.steps) for sampler in own) for method, own in methods.items()}
    return _words(
        f"T' = {text}" + ("" if alike == ["ancestral"] else f" with {' or '.join(alike)}")
        for text, alike in grouped(steps, steps.__getitem__).items()
    )


def _words(items: Iterable[str]) -> str:
    """Each once: `a, b and c`."""
    *first, last = dict.fromkeys(items)
    return f"{', '.join(first)} and {last}" if first else last
