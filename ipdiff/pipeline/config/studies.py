"""Where studies lie: each is a folder with its own params.yaml, and the root's is the default study's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from ipdiff.errors import ConfigError
from ipdiff.pipeline.config import checks, reading
from ipdiff.pipeline.config.naming import misnamed, suggest
from ipdiff.pipeline.config.params import Params
from ipdiff.pipeline.config.spec import Dataset

PARAMS = Path("params.yaml")
FOLDER = Path("studies")
DEFAULT = "digits"
"""The study in the project's root."""


def path_of(study: str) -> Path:
    """A study's params.yaml, from the project's root; its dvc.yaml and dvc.lock lie beside it."""
    return PARAMS if study == DEFAULT else FOLDER / study / PARAMS


def load(path: Path = PARAMS) -> Params:
    """Read and check one params.yaml; the folder's name is the study's.

    Raises:
        ConfigError: one line with the key's path: unknown key (and the nearest valid one), wrong type or
            value, or a name that does not exist.
    """
    return _load(path, reading.text_of(path))


@lru_cache(maxsize=16)
def _load(path: Path, text: str) -> Params:
    record, raw = reading.records(path, text)
    study = path.parent.name if path.parent.parent.name == FOLDER.name else DEFAULT
    params = Params(**vars(record), study=study, path=path, raw=raw)
    checks.check(params)
    return params


class Studies:
    """The studies of a project, each read when it is asked for: what is wrong with one is no other one's business.

    A file is read once: make a new object after an edit.
    """

    def __init__(self, root: Path = Path()) -> None:
        """Those of the project in this directory."""
        self.root = root
        self._loaded: dict[str, Params] = {}
        self._owned: dict[str, Params] = {}

    @cached_property
    def names(self) -> list[str]:
        """Of all studies, whether they can be read or not; the default study first.

        Raises:
            ConfigError: there is none.
        """
        names = [DEFAULT] if (self.root / PARAMS).exists() else []
        names += [name for name in self._folders if name not in self._misnamed]
        if not names:
            raise ConfigError(f"{self.root / PARAMS} is missing; run ipdiff in the project's root")
        return names

    @cached_property
    def _folders(self) -> list[str]:
        found = (self.root / FOLDER).glob(f"[!.]*/{PARAMS}")
        return sorted(path.parent.name for path in found)

    @cached_property
    def _misnamed(self) -> dict[str, str]:
        """Folders that cannot be studies, and why."""
        wrong = {
            name: f"{FOLDER / name}: a study's name {why}"
            for name in self._folders
            if (why := misnamed(name, study=True))
        }
        if DEFAULT in self._folders:
            wrong[DEFAULT] = f"{FOLDER / DEFAULT}: the study {DEFAULT} is the root's {PARAMS}; rename the folder"
        return wrong

    def load(self, name: str) -> Params:
        """One study's parameters.

        Raises:
            ConfigError: there is no such study, its file is wrong, or another study has a data set of that name too.
        """
        if name not in self._loaded:
            if name not in self.names:
                raise ConfigError(
                    f"study '{name}' is not here, there is no {self.root / path_of(name)}{suggest(name, self.names)}"
                )
            params = load(self.root / path_of(name))
            for dataset in params.datasets:
                self._owner(dataset)
            self._loaded[name] = params
        return self._loaded[name]

    def of(self, names: Mapping[str, str]) -> Params:
        """The parameters of the study that a cell with these names belongs to: its own, or its data set's."""
        return self.load(names["study"]) if "study" in names else self.owner(names["dataset"])

    def owner(self, dataset: str) -> Params:
        """The parameters of the study that a data set belongs to.

        Raises:
            ConfigError: it belongs to none, or to two; or its study's file is wrong.
        """
        if dataset in self._owned:
            return self._owned[dataset]
        if (name := self._owner(dataset)) is not None:
            self.readable([study for study, names in self.datasets.items() if names is None])
            self._owned[dataset] = self.load(name)
            return self._owned[dataset]
        for study in self.datasets:  # said as it would be of the study asked for
            if self.datasets[study] is None:
                self.load(study)
        known = [name for names in self.datasets.values() for name in names or ()]
        raise ConfigError(f"dataset '{dataset}' is in no study's {PARAMS}{suggest(dataset, known)}")

    def dataset(self, name: str) -> Dataset:
        """A data set, by the study that it belongs to; raises like `owner`."""
        return self.owner(name).dataset(name)

    def _owner(self, dataset: str) -> str | None:
        owners = [study for study, names in self.datasets.items() if names is not None and dataset in names]
        if len(owners) > 1:
            both = " and ".join(str(self.root / path_of(study)) for study in owners[:2])
            raise ConfigError(f"{both} both have datasets.{dataset}; a data set belongs to one study: rename one")
        return owners[0] if owners else None

    @cached_property
    def datasets(self) -> dict[str, list[str] | None]:
        """Names of each study's data sets, unchecked; None where they cannot be read."""
        return {name: _datasets_in(self.root / path_of(name)) for name in self.names}

    def imported(self) -> list[tuple[str, str]]:
        """Data set and model of all imported checkpoints there may be; no study is read that does not speak of any."""
        speaking = [name for name in self.names if "imported" in _text(self.root / path_of(name))]
        return [
            (dataset, model)
            for name in self.readable(speaking)
            for dataset in self.load(name).datasets
            for model, known in self.load(name).models.items()
            if known.imported
        ]

    def broken(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Those of these studies (of all, if None) that cannot be used, and a line about each."""
        found = {str(FOLDER / name): line for name, line in self._misnamed.items()} if names is None else {}
        for name in self.names if names is None else names:
            try:
                self.load(name)
            except ConfigError as error:
                found[name] = str(error)
        return found

    def readable(self, names: Iterable[str] | None = None) -> list[str]:
        """Those of these studies (of all, if None) that can be used. Each other one is named on stderr, once."""
        names = None if names is None else list(names)
        broken = self.broken(names)
        for line in broken.values():
            if line not in _said:
                print(f"ipdiff: left out: {line}", file=sys.stderr)
                _said.add(line)
        return [name for name in (self.names if names is None else names) if name not in broken]


_said = set[str]()


def _text(path: Path) -> str:
    try:
        return reading.text_of(path)
    except ConfigError:
        return ""


def _datasets_in(path: Path) -> list[str] | None:
    try:
        raw = yaml.load(_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return list(map(str, raw["datasets"].keys()))
    except (ValueError, yaml.YAMLError, RecursionError, AttributeError, LookupError, TypeError):
        return None
