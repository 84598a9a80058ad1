"""The sentences under a table: what the numbers are, how measured, why a paper value is missing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from ipdiff.report import labels
from ipdiff.report.paper import PaperTable
from ipdiff.report.results import grouped
from ipdiff.report.spec import Table
from ipdiff.report.tables.entries import FAR, Entry, names, too_few
from ipdiff.report.tables.layout import PLUS_MINUS, best, contests
from ipdiff.report.tables.verdicts import SEPARATES
from ipdiff.sample_sets.spec import Sampler

SHOWN = 4
"""Points that a sentence names at most."""


def write(table: Table, entries: list[Entry], paper: PaperTable | None) -> list[str]:
    """The notes of a table, its own first."""
    values, named = [entry for entry in entries if entry.kind == "value"], names(entries)
    found = [
        table.note,
        _seeds(values, named),
        _differences([entry for entry in entries if entry.kind == "difference"]),
        _best(table, values),
        _constants(table, entries[0], named),
        _strengths(values, named),
        _steps(table, values, named),
        _protocols(entries),
        _dimensions(values),
        _singular(values),
        *_halves(values, named),
        _calls(values),
        _comparable(values, paper, named),
        _missing(values, paper),
    ]
    return [note for note in found if note]


def _models(entries: list[Entry], named: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(named[entry.model] for entry in entries))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _seeds(values: list[Entry], named: Mapping[str, str]) -> str:
    groups = grouped(values, lambda entry: entry.seeds)
    if len(groups) == 1:
        return _sentence(_over(*groups))
    return "; ".join(f"{' and '.join(_models(group, named))}: {_over(seeds)}" for seeds, group in groups.items()) + "."


def _over(seeds: tuple[int, ...]) -> str:
    if len(seeds) == 1:
        return f"one training seed ({seeds[0]}), plain values without a spread"
    return (
        f"mean {PLUS_MINUS} standard deviation (N {labels.MINUS} 1) over {len(seeds)} training seeds "
        f"({', '.join(map(str, seeds))})"
    )


def _differences(differences: list[Entry]) -> str:
    if not differences:
        return ""
    *fewer, most = sorted({entry.seed_count for entry in differences})
    over = (f"{', '.join(map(str, fewer))} or " if fewer else "") + f"{most} seed{'' if most == 1 else 's'}"
    return (
        f"Differences are paired by seed ({over} in common). Better or worse: the mean difference is larger "
        "than the standard deviation of the differences across seeds; within spread: it is not; one seed: the "
        "spread is unknown. A plain mark of size, not a significance test."
    )


def _best(table: Table, values: list[Entry]) -> str:
    text = labels.better({entry.label: entry.metric for entry in values})
    if not text:
        return ""
    direction = _sentence(text)
    found = contests(table, values)
    judged = [contest for contest in found if any(len(one.minus(contest[0])) > 1 for one in contest[1:])]
    if not found:
        return direction
    if not judged:
        return f"{direction} None is in bold: without two training seeds in common there is no spread to judge by."
    if not any(map(best, judged)):
        return f"{direction} None is in bold, for no model separates from each other one: {SEPARATES}."
    where = "of a data set" if table.points else "under equal conditions"
    word = {"lower is better": "lowest", "higher is better": "highest"}.get(text, "best")
    return (
        f"{direction} Bold: the {word} mean among the models {where}, only where it separates from each other one: "
        f"{SEPARATES}."
    )


def _constants(table: Table, one: Entry, named: Mapping[str, str]) -> str:
    rows, columns = table.axes
    shown = {labels.AXES[axis].of for axis in rows + columns}
    constant = [axis for axis in ("metric", "dataset", "model", "sampler") if labels.AXES[axis].of not in shown]
    return " ".join(
        f"{header.capitalize()}: {named[one.model] if of == 'model' else name(getattr(one, of))}."
        for header, name, of in (labels.AXES[axis] for axis in constant)
    )


def _strengths(values: list[Entry], named: Mapping[str, str]) -> str:
    """Of models whose gamma is another one on each data set, so that their name does not say it."""
    parts: list[str] = []
    for model, group in grouped(values, lambda entry: entry.model).items():
        found = {labels.dataset(entry.dataset): labels.gamma(entry.gamma) for entry in group if entry.gamma}
        if len(set(found.values())) > 1:
            parts.append(f"{named[model]} {', '.join(f'{dataset} {text}' for dataset, text in found.items())}")
    return f"Gamma: {'; '.join(parts)}." if parts else ""


def _steps(table: Table, values: list[Entry], named: Mapping[str, str]) -> str:
    rows, columns = table.axes
    if "step" in rows + columns:
        return ""
    texts = {name: _by_model(group, named) for name, group in grouped(values, lambda entry: entry.dataset).items()}
    if len(set(texts.values())) == 1:
        return f"Training steps: {next(iter(texts.values()))}."
    return f"Training steps: {'; '.join(f'{labels.dataset(name)}: {text}' for name, text in texts.items())}."


def _by_model(values: list[Entry], named: Mapping[str, str]) -> str:
    steps = {named[entry.model]: entry.step for entry in values}
    if len(set(steps.values())) == 1:
        return f"{values[0].step:,}"
    return ", ".join(f"{step:,} ({name})" for name, step in steps.items())


def _protocols(entries: list[Entry]) -> str:
    groups = grouped(entries, lambda entry: labels.dataset(entry.dataset))
    texts = {
        name: " and ".join(dict.fromkeys(entry.protocol.text() for entry in each)) for name, each in groups.items()
    }
    return f"Measured with: {'; '.join(f'{name}: {text}' for name, text in texts.items())}."


def _dimensions(values: list[Entry]) -> str:
    """How many features each metric compares: with N, all that is known of how sure a figure without a spread is."""
    groups = grouped((entry for entry in values if entry.judged and entry.dimensions), lambda entry: entry.label)
    parts = (
        f"{name} {' or '.join(dict.fromkeys(f'{e.dimensions:,}' for e in group))}" for name, group in groups.items()
    )
    return f"Features of an image that are compared: {', '.join(parts)}." if groups else ""


def _singular(values: list[Entry]) -> str:
    few = too_few(values)
    return f"Fewer images than features, so a covariance is singular and the distance biased: {few}." if few else ""


def _halves(values: list[Entry], named: Mapping[str, str]) -> list[str]:
    """How far the models are from converged: a line for each data set and number of images."""
    points = {entry.card: entry for entry in values if entry.half_n}.values()
    groups = grouped(points, lambda entry: (entry.dataset, entry.half_n, entry.half_real))
    several = len({entry.dataset for entry in values}) > 1
    return [
        (f"{labels.dataset(dataset)}: " if several else "") + _half(list(group), real or 0.0, named)
        for (dataset, _, real), group in groups.items()
    ]


def _half(points: list[Entry], real: float, named: Mapping[str, str]) -> str:
    one, found = points[0], [statistics.fmean(entry.half_samples) for entry in points]
    fid, places = labels.metric("fid", one.features, one.features_digest), labels.decimals([real, *found])
    least, most = (labels.number(value, places) for value in (min(found), max(found)))
    start = " (which start from real images, of that half too)" if Sampler.parse(one.sampler).row.from_images else ""
    far = [entry for entry in points if entry.far]
    if not far:
        said = f"none is far from converged (above {FAR} times the first)"
    else:
        which = "; ".join(f"{named[entry.model]} at {labels.sampler(entry.sampler)}" for entry in far[:SHOWN])
        more = f" and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
        which = "all" if len(far) == len(points) else f"{len(far)} of {len(points)}: {which}{more}"
        said = f"far from converged (above {FAR} times the first): {which}"
    return (
        f"{fid} between two disjoint halves of the real images, {one.half_n:,} in each: {labels.number(real, places)}; "
        f"of as many samples{start} against the same half: {least if least == most else f'{least} to {most}'}; {said}."
    )


def _calls(values: list[Entry]) -> str:
    """Where a grid keeps another number of steps than T'."""
    found = {labels.sampler(entry.sampler): entry.nfe for entry in values}
    other = {labels.sampler(e.sampler) for e in values if e.nfe != Sampler.parse(e.sampler).steps}
    texts = "; ".join(f"{name}: {nfe}" for name, nfe in found.items() if name in other)
    return f"Network calls an image (NFE): {texts}." if texts else ""


def _comparable(values: list[Entry], paper: PaperTable | None, named: Mapping[str, str]) -> str:
    shown = [entry for entry in values if entry.comparable]
    if paper is None or not shown:
        return ""
    said = [f"In brackets: the paper's value ({paper.source}).", paper.caveat]
    said += [paper.caveats.get(name, "") for name in dict.fromkeys(entry.dataset for entry in shown)]
    if unknown := grouped((entry for entry in shown if entry.unknown), lambda entry: entry.unknown):
        parts = "; ".join(f"{what} of {' and '.join(_models(group, named))}" for what, group in unknown.items())
        said.append(f"Not known of the paper's figures, and not compared: {parts}.")
    return " ".join(text for text in said if text)


def _missing(values: list[Entry], paper: PaperTable | None) -> str:
    missing = [entry for entry in values if not entry.comparable]
    if paper is None or not missing:
        return ""
    which = "any cell" if len(missing) == len(values) else f"{len(missing)} of {len(values)} cells"
    return f"No value of the paper stands beside {which}: {'; '.join(dict.fromkeys(e.reason for e in missing))}."
