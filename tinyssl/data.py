"""The cache of decoded pictures: every file is decoded once.

n = pictures, s = cache size, c = channels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyssl.errors import JobError, NothingReadable, UsageError
from tinyssl.files import One, csv_text, in_home, read_json, reason, write_text
from tinyssl.headers import read_header
from tinyssl.lines import log
from tinyssl.locks import locked
from tinyssl.opening import MAX_PIXELS, Unreadable, read_file, reading
from tinyssl.picture import ResizeRule, decode, resize, to_channels, to_depth

CACHE_FORMAT = 5
LARGEST_INDEX = 1 << 32  # bytes; of millions of pictures
_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("uint8"), "uint16": np.dtype("uint16")}
BUILDING, INDEX, PIXELS = ".building-", "index.json", "pictures.bin"
_IN_FLIGHT = 64
# Reasons of a disk, a network or a full machine rather than of a picture.
_PASSING = {os.strerror(code) for code in (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)}  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures in their cache.

    Attributes:
        array: (n, s, s, c) uint8 or uint16, a read-only memory map.
        paths: n absolute paths.
        hashes: n digests of the files' bytes.
        skipped: files that could not be read, with the reason.
        digest: of paths and hashes; identifies the set of pictures.
        folder: of the cache.
        several: readable files with more than one picture, of which the first is taken.
    """

    array: NDArray[Any]
    paths: list[str]
    hashes: list[str]
    skipped: list[tuple[str, str]]
    digest: str
    folder: Path
    several: list[str] = field(default_factory=list)

    def duplicates(self) -> list[list[int]]:
        """Groups of two or more pictures whose files have the same bytes."""
        groups: dict[str, list[int]] = {}
        for number, digest in enumerate(self.hashes):
            groups.setdefault(digest, []).append(number)
        return [group for group in groups.values() if len(group) > 1]

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in units of [0, 1].

        Over at most 2,000 evenly spaced pictures; a constant channel gets 0.001.
        """
        rows = np.unique(np.linspace(0, len(self.array) - 1, min(2000, len(self.array))).round())
        scale = float(np.iinfo(self.array.dtype).max)
        moments = np.zeros((2, self.array.shape[3]))
        for row in rows.astype(int):
            picture = self.array[row] / scale
            moments += np.stack([picture.mean(axis=(0, 1)), np.square(picture).mean(axis=(0, 1))])
        mean, square = moments / len(rows)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return mean.tolist(), np.maximum(std, 1e-3).tolist()


def default_cache_dir() -> Path:
    """`$TINYSSL_CACHE`, or `tinyssl` in the user's cache folder.

    Raises:
        UsageError: there is none, as in a container whose user has no home.
    """
    given = os.environ.get("TINYSSL_CACHE")
    if given:
        return in_home(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "tinyssl"
    except RuntimeError:
        raise UsageError(
            "this user has no home for the cache of pictures; name a folder in the variable "
            "TINYSSL_CACHE"
        ) from None


def worker_count(workers: int) -> int:
    """Threads or processes for a setting of workers, of which 0 is one a CPU core.

    Raises:
        UsageError: a setting below 0.
    """
    if workers < 0:
        raise UsageError(f"workers: got {workers}; give 0 (one a CPU core) or more")
    return workers or os.cpu_count() or 1


def load_pictures(
    files: Sequence[Path],
    *,
    size: int,
    rule: ResizeRule,
    channels: int | Literal["auto"] = "auto",
    cache_dir: Path | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
    as_it_was: bool = False,
) -> Pictures:
    """Decodes pictures into a cache, or opens the cache if nothing has changed.

    The cache depends on the list of files, their sizes and times, and the settings here. A second
    process that wants the same cache waits for the first one and uses its result. It is made again
    if a picture that was skipped for an error of the disk or the network can be read by now.

    Args:
        files: from `scanning.scan`.
        size: pixels a side.
        rule: how a picture is made square.
        channels: 1 to 4; `auto` is 1 when every picture is gray, else 3.
        cache_dir: has one folder per cache; the user's cache folder when None.
        workers: threads; 0 is one a CPU core.
        max_pixels: of a picture; larger ones are skipped.
        progress: called with the number of newly finished pictures.
        as_it_was: keep the cache without pictures that can be read by now.

    Raises:
        NothingReadable: no picture can be read.
        JobError: the cache cannot be written.
    """
    root = default_cache_dir() if cache_dir is None else in_home(cache_dir)
    found = find_cache(files, size, rule, channels, max_pixels, root)
    if found is not None and (as_it_was or not error_passed(found)):
        if progress is not None:
            progress(len(files))
        return found
    settings = _settings(size, rule, channels, max_pixels)
    key = fingerprint(files, settings)
    job = _Build(files, size, rule, channels, settings, worker_count(workers), progress)
    try:
        with reading(max_pixels):
            return _built_once(job, root, key)
    except OSError as error:
        raise JobError(
            f"cannot write the cache {root / key}: {reason(error, job.needs)}; data.cache_dir or "
            "the variable TINYSSL_CACHE names another folder"
        ) from error


def pictures_for(
    description: Mapping[str, Any],
    files: Sequence[Path],
    *,
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Pictures:
    """Decodes pictures as an encoder takes them; see `load_pictures`.

    Args:
        description: of the encoder, from `weights.read_description`.
        files: as in `load_pictures`, like the others.
        cache_dir: see files.
        workers: see files.
        progress: see files.
    """
    return load_pictures(
        files,
        size=description["image_size"],
        rule=description["resize"],
        channels=description["channels"],
        max_pixels=description["max_pixels"],
        cache_dir=cache_dir,
        workers=workers,
        progress=progress,
    )


def _settings(size: int, rule: ResizeRule, channels: int | Literal["auto"], max_pixels: int) -> str:
    return f"{CACHE_FORMAT} {size} {rule} {channels} {max_pixels}"


def find_cache(
    files: Sequence[Path],
    size: int,
    rule: ResizeRule,
    channels: int | Literal["auto"],
    max_pixels: int,
    root: Path,
) -> Pictures | None:
    """The cache of exactly these files and settings, see `load_pictures`; None if there is none."""
    found = open_cache(root / fingerprint(files, _settings(size, rule, channels, max_pixels)))
    if found is None and channels != "auto":
        # A cache with `auto`, made before the channels were known, may serve too.
        other = fingerprint(files, _settings(size, rule, "auto", max_pixels))
        found = open_cache(root / other)
        found = found if found is not None and found.array.shape[3] == channels else None
    return found


def error_passed(cache: Pictures) -> bool:
    """Whether a picture was skipped for an error that has passed."""
    return any(told in _PASSING and _can_be_read(path) for path, told in cache.skipped)


def _can_be_read(path: str) -> bool:
    try:
        return bool(read_file(Path(path)))
    except (OSError, Unreadable):
        return False


def read_picture(
    path: One,
    size: int,
    rule: ResizeRule,
    channels: int,
    dtype: Any,
    read: Callable[[One], bytes],
) -> tuple[str, NDArray[Any]] | str:
    """The digest of a file's bytes and its picture (size, size, channels), or why there is none.

    `read` returns the bytes, or raises OSError or Unreadable; its other errors are not caught.
    """
    try:
        data = read(path)
        picture = to_depth(to_channels(decode(data, channels), channels), dtype)
        return hashlib.blake2b(data, digest_size=16).hexdigest(), resize(picture, size, rule)
    except OSError as error:
        return error.strerror or str(error)
    except Unreadable as error:
        return str(error)


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Path], Any],
    items: Sequence[Path],
    in_flight: int = _IN_FLIGHT,
) -> Iterator[Any]:
    """Results in order, with few items in flight, so that memory stays constant."""
    waiting = iter(items)
    futures = deque(pool.submit(work, item) for item in islice(waiting, in_flight))
    while futures:
        result = futures.popleft().result()
        futures.extend(pool.submit(work, item) for item in islice(waiting, 1))
        yield result


def fingerprint(files: Sequence[Path], settings: str) -> str:
    """A key that depends on the list of files, their sizes and times, and the settings.

    The times include the change time, which programs cannot set.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=10)
    for path in files:
        try:
            status = path.stat()
            stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except OSError:
            stamp = "missing"
        digest.update(f"\0{path}\0{stamp}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Writes `path,reason` rows; atomic."""
    write_text(path, csv_text([("path", "reason"), *skipped]))


@dataclass
class _Build:
    """The files to decode, and how."""

    files: Sequence[Path]
    size: int
    rule: ResizeRule
    channels: int | Literal["auto"]
    settings: str
    workers: int
    progress: Callable[[int], None] | None
    dtype: Any = np.uint8

    @property
    def needs(self) -> int:
        """Bytes of all pictures, if every one can be read."""
        channels = 3 if self.channels == "auto" else self.channels
        return len(self.files) * self.size**2 * channels * int(np.dtype(self.dtype).itemsize)


def _built_once(job: _Build, root: Path, key: str) -> Pictures:
    """Builds in a temporary folder and renames it, so that a cache is complete or absent."""
    root.mkdir(parents=True, exist_ok=True)
    temporary, folder = root / f"{BUILDING}{key}", root / key
    while True:
        # Not `exist_ok=True`, which raises if the folder is removed at that moment.
        with suppress(FileExistsError):
            temporary.mkdir()
        try:
            with locked(temporary, lambda: log.info(f"waiting: another tinyssl makes {folder}")):
                found = open_cache(folder)
                if found is None or error_passed(found):
                    return _build(job, temporary, folder)
                temporary.rmdir()
                return found  # made while this waited
        except FileNotFoundError:  # renamed or removed while this waited
            continue


def _build(job: _Build, temporary: Path, folder: Path) -> Pictures:
    try:
        for leftover in temporary.iterdir():  # of a build that was killed
            leftover.unlink()
        with ThreadPoolExecutor(job.workers) as pool:
            several = _survey(job, pool)
            _tell_space(job, temporary)
            index = _decode_all(job, several, temporary, pool)
        if not index["paths"]:
            raise NothingReadable.of(index["skipped"])
        write_skipped(temporary / "skipped.csv", [tuple(row) for row in index["skipped"]])
        write_text(temporary / INDEX, json.dumps(index))
        if folder.exists():  # damaged, or without pictures that can be read by now
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    built = open_cache(folder)
    if built is None:
        raise JobError(f"the cache {folder} was damaged while it was made; try again")
    return built


def _survey(job: _Build, pool: ThreadPoolExecutor) -> list[bool]:
    """Reads headers to settle the array's dtype and channels before it is allocated.

    Files that will be skipped for their channels have no say.

    Returns:
        For each file, whether it holds more than one picture.
    """
    kinds, several = set(), []
    for header in in_order(pool, read_header, job.files):
        several.append(header is not None and header.frames)
        if header is not None and header.channels in (1, 3, job.channels):
            kinds.add((header.deep, header.gray))
    job.dtype = np.uint16 if any(deep for deep, _ in kinds) else np.uint8
    if job.channels == "auto":
        job.channels = 1 if all(gray for _, gray in kinds) else 3
    return several


def _tell_space(job: _Build, folder: Path) -> None:
    """Warns before the work, and does not refuse: some file systems compress."""
    free = shutil.disk_usage(folder).free
    if job.needs > free:
        log.warning(
            f"the cache of these pictures may take {job.needs / 1e6:,.1f} MB, and "
            f"{folder.parent} has {free / 1e6:,.1f} MB free; data.cache_dir or the variable "
            "TINYSSL_CACHE names another folder"
        )


def _decode_all(
    job: _Build, several: Sequence[bool], folder: Path, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    channels = int(job.channels)

    def work(path: Path) -> tuple[str, NDArray[Any]] | str:
        return read_picture(path, job.size, job.rule, channels, job.dtype, read_file)

    index: dict[str, Any] = {
        "paths": [], "hashes": [], "skipped": [], "skipped_at": [], "several": [],
    }  # fmt: skip
    with (folder / PIXELS).open("wb") as file:
        for number, result in enumerate(in_order(pool, work, job.files)):
            path = str(job.files[number])
            if isinstance(result, str):
                index["skipped"].append([path, result])
                index["skipped_at"].append(number)
            else:
                file.write(result[1].tobytes())
                index["paths"].append(path)
                index["hashes"].append(result[0])
                index["several"] += [path] if several[number] else []
            if job.progress is not None:
                job.progress(1)
        file.flush()
        os.fsync(file.fileno())
    shape = [len(index["paths"]), job.size, job.size, channels]
    return index | {"shape": shape, "dtype": np.dtype(job.dtype).name, "settings": job.settings}


def open_cache(folder: Path) -> Pictures | None:
    """The cache in a folder; None if there is none, or it is incomplete."""
    try:
        index = read_json(folder / INDEX, LARGEST_INDEX)
        dtype, shape = _DTYPES[index["dtype"]], tuple(index["shape"])
        whole = (folder / PIXELS).stat().st_size == math.prod(shape) * dtype.itemsize
        whole &= len(index["paths"]) == len(index["hashes"]) == shape[0]
        identity = hashlib.blake2b(json.dumps([index["paths"], index["hashes"]]).encode())
        if not whole:
            return None
        return Pictures(
            array=np.memmap(folder / PIXELS, dtype, "r", shape=shape),
            paths=index["paths"],
            hashes=index["hashes"],
            skipped=[(path, reason) for path, reason in index["skipped"]],
            several=index["several"],
            digest=identity.hexdigest()[:32],
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
