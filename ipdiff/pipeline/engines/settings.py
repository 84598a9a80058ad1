"""What Snakemake is told by `--config`, `--configfile`, config/config.yaml or a module's `config`.

No number depends on it: what decides one is a key of params.yaml. A key that means nothing is refused, never ignored.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.pipeline import config
from ipdiff.work.files import write_whole

KEYS = {
    "params": "the params.yaml of the study in the root; written, as the digits study, where there is no study",
    "benchmark": "true: time and memory of each training, sampling and evaluation go to logs/, beside the job's log",
}
"""The keys there are, and what they mean."""
_WORDS = {"true": True, "false": False}


def read(given: Mapping[str, Any], shipped: Callable[[], str]) -> bool:
    """Hold the configuration against `KEYS` and see to the root's params.yaml; whether jobs are to be benchmarked.

    Args:
        given: Snakemake's configuration.
        shipped: the path of the params.yaml that came with the Snakefile, which may have to be fetched.

    Raises:
        UserError: an unknown key, a wrong value, or a params.yaml that is not the project's.
    """
    for key in given:
        if key not in KEYS:
            raise UserError(
                f"Snakemake's config has '{key}'{config.suggest(str(key), KEYS)}; what decides numbers is edited in "
                "params.yaml; as a module, give ipdiff a config of its own (`config: {}`)"
            )
    benchmark, params = given.get("benchmark", False), given.get("params", str(config.PARAMS))
    benchmark = _WORDS.get(str(benchmark).lower())  # the command line gives text
    if benchmark is None:
        raise UserError(f"Snakemake's config benchmark: found {given['benchmark']!r}; expected true or false")
    if not isinstance(params, str) or not params:
        raise UserError(f"Snakemake's config params: found {params!r}; expected the path of a params.yaml")
    _see_to(Path(params), shipped)
    return benchmark


def _see_to(params: Path, shipped: Callable[[], str]) -> None:
    """The root's study is read from params.yaml: make it that file, if it is none yet."""
    root = config.PARAMS
    if not params.exists() and not root.exists() and not any(config.FOLDER.glob(f"*/{config.PARAMS}")):
        params.parent.mkdir(parents=True, exist_ok=True)
        write_whole(params, Path(shipped()).read_bytes())
        print(f"ipdiff: wrote {params}, the digits study; edit it, or add studies/NAME/params.yaml", file=sys.stderr)
    if params == root:
        return
    if not params.exists():
        raise UserError(f"Snakemake's config params: there is no {params}")
    if not root.exists():
        root.symlink_to(os.path.relpath(params))
        print(f"ipdiff: {root} is a link to {params} now", file=sys.stderr)
    elif not root.samefile(params):
        raise UserError(
            f"Snakemake's config params: {params} is not the project's {root}, which is here too; make it a study of "
            "its own (studies/NAME/params.yaml, then `snakemake NAME`), or move one of the two away"
        )
