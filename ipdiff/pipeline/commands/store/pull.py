"""`dvc pull` of what is asked for, verified, and made known to Snakemake."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import in_git, verify
from ipdiff.pipeline.commands.store.verify import Verified, bytes_text, count
from ipdiff.pipeline.engines import dvc_files, sync
from ipdiff.pipeline.grid import Cell, Grid, cache_keys, selection
from ipdiff.pipeline.store import artifact, dvc_cache
from ipdiff.pipeline.store.dvc_log import line, listening

REMOTES = "'ipdiff[remotes]'"


@dataclass
class Pulled:
    """What a pull did, as lines for a person.

    Attributes:
        said: what is here now.
        wrong: files that came damaged and were removed, and problems of others.
        failed: why some files did not come, or None.
        left_out: what was not asked for, because published/store keeps only a part; None if it was asked.
    """

    said: str
    wrong: list[str]
    failed: str | None
    left_out: str | None = None


def pull(
    names: Sequence[str] = (),
    *,
    remote: str | None = None,
    metrics_only: bool = False,
    jobs: int | None = None,
    force: bool = False,
) -> Pulled:
    """Bring recorded artifacts here from a DVC remote, verify them, and tell Snakemake.

    What came damaged is removed from the workspace and the cache, so that the next pull fetches it again.

    Args:
        names: targets (see `selection.select`); nothing means all that dvc.lock records.
        remote: name of a DVC remote; the default one if None, and published/store where none is set.
        metrics_only: only metrics, tables, figures, reports and recipes.
        jobs: transfers at a time; DVC's default if None.
        force: replace files here that DVC does not know.

    Raises:
        UserError: a target is unknown or not recorded, or there is no dvc.lock or no such remote.
    """
    if (why := sync.obstacle()) is not None:
        raise UserError(f"nothing can be pulled: {why}")
    known = grid.load()
    recorded = dvc_files.recorded(known.studies.names)
    if not recorded:
        raise UserError("there is no dvc.lock here: nothing has been recorded at this commit, so nothing can be pulled")
    selected = selection.select(known, names)
    if metrics_only:
        selected = selection.results(selected)
    wanted = _wanted(selected, recorded, names)
    if remote is None and in_git.is_fallback():
        remote = in_git.REMOTE
    left_out = None
    if remote == in_git.REMOTE:
        there = _kept(wanted, recorded)
        left_out = _left_out(wanted, there)
        if left_out is not None and not set(names) <= set(known.studies.names):
            raise UserError(left_out)  # what is named has to come
        wanted = there
    digests = {path: recorded[path] for path in [*wanted, *_settings(known, wanted, recorded)]}
    _make_way(digests, force)
    brought = _bring(digests, remote=remote, jobs=jobs)
    seen = verify.verify(selected=wanted)
    damaged = _discard({path: recorded[path] for path in sorted(brought.paths & wanted.keys())}, seen)
    good = [path for path in wanted if os.path.exists(path)]
    artifacts, size = len({wanted[path].directory for path in good}), sum(os.stat(path).st_size for path in good)
    said = (
        f"{len(good)} of the files asked for are here and verified ({count(artifacts, 'artifact')}, "
        f"{bytes_text(size)}, {brought.fetched} fetched now); told Snakemake of {len(sync.adopt())}"
    )
    return Pulled(said, [*brought.damaged, *damaged, *map(str, seen.problems)], brought.failed, left_out)


def _wanted(selected: dict[str, Cell], recorded: dict[str, str], names: Sequence[str]) -> dict[str, Cell]:
    """The selected outputs that dvc.lock records; all of them have to be there if they were named."""
    wanted = {path: cell for path, cell in selected.items() if path in recorded}
    lacking = [path for path in selected if path not in recorded]
    if names and lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"{lacking[0]}{more}: not in dvc.lock; nobody has made and recorded that at this commit")
    return wanted


def _kept(wanted: dict[str, Cell], recorded: dict[str, str]) -> dict[str, Cell]:
    """Those outputs that published/store keeps, or that are in DVC's cache already."""
    root = dvc_cache.root()
    return {
        path: cell
        for path, cell in wanted.items()
        if in_git.has(recorded[path]) or dvc_cache.path_in(root, recorded[path]).exists()
    }


def _left_out(wanted: dict[str, Cell], kept: dict[str, Cell]) -> str | None:
    """A line about the outputs that published/store does not keep; None if it keeps them all."""
    absent = [path for path in wanted if path not in kept]
    if not absent:
        return None
    folders = ", ".join(sorted({path.partition("/")[0] for path in absent}))
    return (
        f"{count(len(absent), 'file')} not brought ({folders}): {in_git.STORE} keeps only a part of a study; "
        "make them with Snakemake or DVC, or name a remote that has them (--remote NAME)"
    )


def _settings(known: Grid, wanted: dict[str, Cell], recorded: dict[str, str]) -> list[str]:
    """Write the settings of the studies of these cells, on which DVC's stages depend; returns those recorded so."""
    studies = dict.fromkeys(known.of(cell).study for cell in wanted.values())
    paths = [path for study in studies for path in cache_keys.write(cache_keys.texts(known, study))]
    return [str(path) for path in paths if artifact.file_digest(path) == recorded.get(str(path))]


def _make_way(digests: dict[str, str], force: bool) -> None:
    """Remove files that are other versions; UserError if one is in no cache either, unless `force`.

    DVC would go by times and sizes, and take a damaged file for a good one.
    """
    found = verify.digests_of(path for path in digests if os.path.exists(path))
    other = [path for path, digest in found.items() if digest != digests[path]]
    root = dvc_cache.root()
    unknown = [path for path in other if not dvc_cache.path_in(root, found[path]).exists()]
    if unknown and not force:
        more = f" and {len(unknown) - 1} more files are" if len(unknown) > 1 else " is"
        raise UserError(
            f"{unknown[0]}{more} not what dvc.lock records, nor in DVC's cache; "
            "`ipdiff pull --force` replaces such files"
        )
    for path in other:
        Path(path).unlink()


# DVC


@dataclass
class _Brought:
    """What DVC did: objects fetched, outputs checked out, and what did not come."""

    fetched: int
    paths: set[str]
    damaged: list[str]
    """Lines about objects that DVC itself found damaged when they came (a remote with `verify`), and removed."""
    failed: str | None


def _bring(digests: dict[str, str], *, remote: str | None, jobs: int | None) -> _Brought:
    """Fetch into DVC's cache and check out.

    `dvc pull` with hundreds of paths reads dvc.yaml again for each of them (0.7 s a path), so its two halves are
    called: the transfer by digest, then the checkout of the outputs.
    """
    from dvc.repo import Repo  # it sets up loggers when imported

    with listening() as said:
        try:
            repo = Repo(".")
            with repo.lock:
                fetched = _fetch(repo, digests, remote, jobs)
                there, dropped = _check_out(repo, digests)
                if dropped:  # DVC found them damaged in its cache and removed them there
                    fetched |= _fetch(repo, dropped, remote, jobs)
                    there |= _check_out(repo, dropped)[0]
        except Exception as error:  # whatever DVC or a remote's library raises
            raise UserError(_explain(error)) from None
    absent = {path: digest for path, digest in digests.items() if path not in there}
    damaged = [
        f"{path}: expected {digest}, found a damaged file, which DVC removed; run ipdiff pull again"
        for path, digest in absent.items()
        if digest in fetched
    ]
    missing = {path: digest for path, digest in absent.items() if digest not in fetched}
    return _Brought(len(fetched - set(absent.values())), there, damaged, _failure(missing, said, remote))


def _failure(absent: dict[str, str], said: list[str], remote: str | None) -> str | None:
    """Why some outputs did not come."""
    if not absent:
        return None
    path, digest = next(iter(absent.items()))
    more = f" and {len(absent) - 1} more files" if len(absent) > 1 else ""
    why = next((line for line in said if line.startswith("failed")), "")
    if remote == in_git.REMOTE:
        why = why or f"the copy in {in_git.STORE} is damaged; git checkout {in_git.STORE}"
    return f"{path}{more} did not come: {why or f'the remote cannot be reached, or has no {digest}'}"


def _fetch(repo: Any, digests: dict[str, str], remote: str | None, jobs: int | None) -> set[str]:
    """Bring into the cache what it lacks, and return that; no remote is needed when it lacks nothing."""
    from dvc_data.hashfile.hash_info import HashInfo

    root = Path(repo.cache.local.path)
    lacking = {digest for digest in digests.values() if not dvc_cache.path_in(root, digest).exists()}
    if remote is not None:
        repo.cloud.get_remote(remote, "pull")
    if not lacking:
        return set()
    result = repo.cloud.pull([HashInfo("md5", digest) for digest in sorted(lacking)], jobs=jobs, remote=remote)
    return {str(info.value) for info in result.transferred}


def _check_out(repo: Any, digests: dict[str, str]) -> tuple[set[str], dict[str, str]]:
    """Put the outputs whose objects are in the cache into the workspace.

    Returns:
        The outputs that were in the cache and stayed there, and those whose cached object DVC removed as damaged.
    """
    from dvc.exceptions import ConfirmRemoveError

    root = Path(repo.cache.local.path)
    outs = {out.def_path: out for out in repo.index.outs}
    there = {path for path, digest in digests.items() if dvc_cache.path_in(root, digest).exists()}
    for path in digests:
        if path not in outs:
            raise UserError(f"{path} is in dvc.lock but not in its dvc.yaml; run `ipdiff grid --write`")
        if path in there:
            with suppress(ConfirmRemoveError):  # its object was just dropped, and the file is good: see _make_way
                outs[path].checkout()
    dropped = {path: digests[path] for path in there if not dvc_cache.path_in(root, digests[path]).exists()}
    return there - dropped.keys(), dropped


def _explain(error: Exception) -> str:
    """One line about an error of DVC or a remote's library, and what to do."""
    text = (line(str(error)) or repr(error)).replace(f"{os.getcwd()}/", "")
    match type(error).__name__:
        case "UserError":
            return text
        case "NoRemoteError":
            return "no remote to pull from; name one: dvc remote add --default NAME URL"
        case "RemoteMissingDepsError":
            return f"the remote needs a package that is not installed: pip install {REMOTES} ({text})"
        case kind:
            return text if "error" in text.lower() else f"{kind}: {text}"


# Afterwards


def _discard(wanted: dict[str, str], seen: Verified) -> list[str]:
    """Remove damaged files from the workspace and the cache, and say so, a line for each digest that was wanted.

    Args:
        wanted: path -> digest.
        seen: what was found; problems of the removed files are taken out.
    """
    root = dvc_cache.root()
    lines: list[str] = []
    copies_of: dict[str, list[str]] = {}
    for path, digest in wanted.items():
        copies_of.setdefault(digest, []).append(path)
    for digest, paths in copies_of.items():
        places = [*paths, str(dvc_cache.path_in(root, digest))]
        bad = [path for path in places if seen.found.get(path, digest) != digest]
        for path in bad:
            Path(path).unlink(missing_ok=True)
        if bad:
            copies = f" (and {', '.join(bad[1:])})" if bad[1:] else ""
            lines.append(
                f"{bad[0]}{copies}: expected {digest}, found {seen.found[bad[0]]}; "
                "damaged, so it was removed: run ipdiff pull again"
            )
        seen.problems = [problem for problem in seen.problems if problem.path not in bad]
    return lines
