"""`tinyssl checks --cache`: lists and removes caches of decoded pictures."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyssl.data import (
    BUILDING,
    CACHE_FORMAT,
    INDEX,
    LARGEST_INDEX,
    default_cache_dir,
    fingerprint,
)
from tinyssl.errors import JobError, UsageError, one_line
from tinyssl.files import read_json
from tinyssl.locks import InUse, locked

_FINGERPRINT = re.compile("[0-9a-f]{20}")


@dataclass(frozen=True)
class Cache:
    """One folder in the cache.

    Attributes:
        folder: its path.
        size: bytes on the disk.
        state: `current`; `stale` if a source file has changed or is gone, or an earlier tinyssl
            made it; `damaged`; `unfinished`.
        told: its content in words.
    """

    folder: Path
    size: int
    state: str
    told: str


def list_caches(root: Path | None = None) -> list[Cache]:
    """All caches below a folder, the user's cache folder when None."""
    folder = root if root is not None else default_cache_dir()
    if not folder.is_dir():
        return []
    return [found for child in sorted(folder.iterdir()) if (found := _look(child)) is not None]


def prune(root: Path | None = None, which: str = "stale") -> list[Cache]:
    """Removes caches and returns them; one that a process is building stays.

    Args:
        root: the user's cache folder when None.
        which: `stale` for all that cannot be used any more, `all` for every one.

    Raises:
        UsageError: `which` is another word.
        JobError: a cache cannot be removed.
    """
    if which not in ("stale", "all"):
        raise UsageError(f"prune: got {which!r}, allowed are stale and all")
    found = [c for c in list_caches(root) if which == "all" or c.state != "current"]
    return [cache for cache in found if _remove(cache.folder)]


def report(root: str | Path | None = None, which: str | None = None) -> str:
    """Lists the caches, or removes some; returns lines of text."""
    folder = default_cache_dir() if root is None else Path(root)
    caches = list_caches(folder) if which is None else prune(folder, which)
    lines = [
        f"{c.folder.name:<30} {c.size / 1e6:10,.1f} MB  {c.state:<10} {c.told}" for c in caches
    ]
    total = sum(cache.size for cache in caches) / 1e6
    done = "caches" if which is None else "caches removed"
    return "\n".join(
        [*map(one_line, lines), f"{len(caches):,} {done}, {total:,.1f} MB, in {folder}"]
    )


def _look(folder: Path) -> Cache | None:
    """None for what tinyssl did not make: any folder may be named, even one of pictures."""
    ours = folder.name.startswith(BUILDING) or _FINGERPRINT.fullmatch(folder.name)
    if not ours or not folder.is_dir() or folder.is_symlink():
        return None
    try:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except FileNotFoundError:  # finished or removed by another process meanwhile
        return None
    if folder.name.startswith(BUILDING):
        return Cache(folder, size, "unfinished", "")
    if not (folder / INDEX).is_file():
        return None
    try:
        index = read_json(folder / INDEX, LARGEST_INDEX)
        files = _in_order(index)
        n, side, _, channels = index["shape"]
        told = f"{n:,} x {side} x {side} x {channels} {index['dtype']}"
        first = f", first {files[0]}" if files else ""
        settings = str(index["settings"])
        now = fingerprint(files, settings) if settings.split()[0] == str(CACHE_FORMAT) else ""
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return Cache(folder, size, "damaged", "")
    return Cache(folder, size, "current" if now == folder.name else "stale", told + first)


def _in_order(index: dict[str, Any]) -> list[Path]:
    """All files that a cache was made from, in their order."""
    names = list(index["paths"])
    for place, (name, _) in zip(index["skipped_at"], index["skipped"], strict=True):
        names.insert(place, name)
    return [Path(name) for name in names]


def _remove(folder: Path) -> bool:
    try:
        with locked(folder):
            shutil.rmtree(folder)
    except (InUse, FileNotFoundError):
        return False
    except OSError as error:
        raise JobError(f"cannot remove {folder}: {error.strerror or error}") from error
    return True
