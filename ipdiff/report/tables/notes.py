"""The sentences under a table: what the numbers are, how measured, why a paper value is missing."""

from __future__ import annotations

from ipdiff.report import labels
from ipdiff.report.paper import PaperTable
from ipdiff.report.results import grouped
from ipdiff.report.spec import Table
from ipdiff.report.tables.entries import Entry
from ipdiff.report.tables.layout import PLUS_MINUS, contests
from ipdiff.sample_sets.spec import Sampler


def write(table: Table, entries: list[Entry], paper: PaperTable | None) -> list[str]:
    """The notes of a table, its own first."""
    values = [entry for entry in entries if entry.kind == "value"]
    found = [
        table.note,
        _seeds(values),
        _differences([entry for entry in entries if entry.kind == "difference"]),
        _best(table, values),
        _constants(table, entries[0]),
        _steps(table, values),
        _protocols(entries),
        _dimensions(values),
        _calls(values),
        _comparable(values, paper),
        _missing(values, paper),
    ]
    return [note for note in found if note]


def _models(entries: list[Entry]) -> list[str]:
    return list(dict.fromkeys(labels.model(entry.model) for entry in entries))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _seeds(values: list[Entry]) -> str:
    groups = grouped(values, lambda entry: entry.seeds)
    if len(groups) == 1:
        return _sentence(_over(*groups))
    return "; ".join(f"{', '.join(_models(group))}: {_over(seeds)}" for seeds, group in groups.items()) + "."


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
    judged = [contest for contest in found if contest.seeds]
    if not found:
        return direction
    if not judged:
        return f"{direction} None is in bold: the models have no training seed in common."
    where = "of a data set" if table.points else "under equal conditions"
    best = {"lower is better": "lowest", "higher is better": "highest"}.get(text, "best")
    bold = f"Bold: the {best} mean among the models {where}"
    if any(set(entry.seeds) != set(contest.seeds) for contest in judged for entry in contest.entries):
        common = " or ".join(dict.fromkeys(", ".join(map(str, contest.seeds)) for contest in judged))
        bold += f", over the training seeds that they have in common ({common})"
    without = ", none where they have no training seed in common" if len(judged) < len(found) else ""
    return f"{direction} {bold}{without}."


def _constants(table: Table, one: Entry) -> str:
    rows, columns = table.axes
    shown = {labels.AXES[axis].of for axis in rows + columns}
    constant = [axis for axis in ("metric", "dataset", "model", "sampler") if labels.AXES[axis].of not in shown]
    return " ".join(
        f"{header.capitalize()}: {name(getattr(one, of))}."
        for header, name, of in (labels.AXES[axis] for axis in constant)
    )


def _steps(table: Table, values: list[Entry]) -> str:
    rows, columns = table.axes
    if "step" in rows + columns:
        return ""
    texts = {name: _by_model(group) for name, group in grouped(values, lambda entry: entry.dataset).items()}
    if len(set(texts.values())) == 1:
        return f"Training steps: {next(iter(texts.values()))}."
    return f"Training steps: {'; '.join(f'{labels.dataset(name)}: {text}' for name, text in texts.items())}."


def _by_model(values: list[Entry]) -> str:
    steps = {labels.model(entry.model): entry.step for entry in values}
    if len(set(steps.values())) == 1:
        return f"{values[0].step:,}"
    return ", ".join(f"{name} {step:,}" for name, step in steps.items())


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


def _calls(values: list[Entry]) -> str:
    """Where a grid keeps another number of steps than T'."""
    found = {labels.sampler(entry.sampler): entry.nfe for entry in values}
    other = {labels.sampler(e.sampler) for e in values if e.nfe != Sampler.parse(e.sampler).steps}
    texts = "; ".join(f"{name}: {nfe}" for name, nfe in found.items() if name in other)
    return f"Network calls an image (NFE): {texts}." if texts else ""


def _comparable(values: list[Entry], paper: PaperTable | None) -> str:
    shown = [entry for entry in values if entry.comparable]
    if paper is None or not shown:
        return ""
    said = [f"In brackets: the paper's value ({paper.source}).", paper.caveat]
    said += [paper.caveats.get(name, "") for name in dict.fromkeys(entry.dataset for entry in shown)]
    if unknown := grouped((entry for entry in shown if entry.unknown), lambda entry: entry.unknown):
        parts = "; ".join(f"{what} of {' and '.join(_models(group))}" for what, group in unknown.items())
        said.append(f"Not known of the paper's figures, and not compared: {parts}.")
    return " ".join(text for text in said if text)


def _missing(values: list[Entry], paper: PaperTable | None) -> str:
    missing = [entry for entry in values if not entry.comparable]
    if paper is None or not missing:
        return ""
    which = "any cell" if len(missing) == len(values) else f"{len(missing)} of {len(values)} cells"
    return f"No value of the paper stands beside {which}: {'; '.join(dict.fromkeys(e.reason for e in missing))}."
