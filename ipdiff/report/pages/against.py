"""A study's numbers at a revision and now: old, new, and the difference of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipdiff.metrics.spec import METRICS
from ipdiff.report import labels
from ipdiff.report.origin import Place, identify
from ipdiff.report.pages import page
from ipdiff.report.results import PROTOCOL, grouped

SHAPE = "metrics/DATASET/MODEL/sSEED/STEP/SAMPLER/metrics.json"


@dataclass(frozen=True)
class Change:
    """One metric of one evaluation.

    Attributes:
        place: the evaluation.
        metric: as it is called in params.yaml.
        label: as tables call it.
        old: the number at the revision; None where it was not measured.
        new: the number now; None where it is not measured any more.
        measured: what of how it was measured differs, in words: then there is no difference to speak of.
    """

    place: Place
    metric: str
    label: str
    old: float | None
    new: float | None
    measured: str = ""

    @property
    def difference(self) -> float | None:
        """New minus old; None where they cannot be held against each other."""
        return None if self.old is None or self.new is None or self.measured else self.new - self.old

    @property
    def kind(self) -> str:
        """What has become of the number: a heading of the page."""
        if self.old is None:
            return "only now"
        if self.new is None:
            return "only then"
        if self.measured:
            return "measured in another way"
        return "changed" if self.difference else "unchanged"


KINDS = ("changed", "measured in another way", "only now", "only then", "unchanged")


def run(
    title: str,
    revision: str,
    then: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, Any]],
    unknown: int,
    out: Path,
) -> list[str]:
    """Write out/against.html.

    Args:
        title: the study's title.
        revision: how the revision is called.
        then: directory of an evaluation -> its numbers and how they were measured, at the revision.
        now: the same, now.
        unknown: evaluations that the revision has, whose numbers could not be found.
        out: directory to write into.

    Returns:
        Lines for a person: the counts, and the largest change of each metric.

    Raises:
        UserError: a directory is none of an evaluation.
    """
    found = changes(then, now)
    lines = summary(found, revision, unknown)
    sections = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    tables = {kind: grouped(ones, lambda one: one.label) for kind, ones in sections.items() if ones}
    context = {"title": title, "revision": revision, "lines": lines, "sections": tables, "number": number}
    page.write(
        "against", out, {**context, "ways": {one.metric: labels.better({one.label: one.metric}) for one in found}}
    )
    return lines


def changes(then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """Every metric of every evaluation of either, in the order of now, then what is left of then."""
    made: list[Change] = []
    for directory in dict.fromkeys((*now, *then)):
        place = identify(Path(directory, "metrics.json"), SHAPE)
        old, new = then.get(directory, {}), now.get(directory, {})
        for metric in METRICS:
            if metric in old or metric in new:
                said = new if metric in new else old
                label = labels.metric(metric, str(said.get("features", "")), str(said.get("features_digest", "")))
                measured = _measured(metric, old, new) if metric in old and metric in new else ""
                made.append(Change(place, metric, label, old.get(metric), new.get(metric), measured))
    return made


def _measured(metric: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which parts of the protocol differ, where both say them; no network's features have a part in pixel distances."""
    pixels = METRICS[metric].ending == "_pixel"
    keys = [key for key in PROTOCOL if not (pixels and key.startswith("features"))]
    return ", ".join(
        f"{key.replace('_', ' ')} {str(old[key])[:8]}, now {str(new[key])[:8]}"
        for key in keys
        if None not in (old.get(key), new.get(key)) and old[key] != new[key]
    )


def summary(found: list[Change], revision: str, unknown: int) -> list[str]:
    """What a person wants to know first."""
    count = {kind: sum(one.kind == kind for one in found) for kind in KINDS}
    both = count["changed"] + count["unchanged"]
    lines = [
        f"{count['changed']} of {both} numbers differ from {revision}; {count['only now']} only now, "
        f"{count['only then']} only there, {count['measured in another way']} measured in another way"
    ]
    for label, ones in grouped((one for one in found if one.kind == "changed"), lambda one: one.label).items():
        most = max(ones, key=lambda one: abs(one.difference or 0.0))
        lines.append(
            f"{label}: {len(ones)} differ, {sum((one.difference or 0) < 0 for one in ones)} of them lower; most: "
            f"{number(most.old)} to {number(most.new)} ({most.place.source.rpartition('/')[0]})"
        )
    if unknown:
        lines.append(
            f"of {unknown} evaluations {revision} records digests whose numbers are not here; at that revision "
            "`ipdiff pull --metrics-only` brings what a remote has of them"
        )
    return lines


def number(value: float | None, sign: str = "") -> str:
    """Six digits, with a true minus sign; nothing for None."""
    return "" if value is None else f"{value:{sign}.6g}".replace("-", labels.MINUS)
