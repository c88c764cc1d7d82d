"""Folder -> scan -> cache: every picture is decoded once.

n = pictures, s = cache size, c = channels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyssl.errors import JobError, TinysslError, UsageError
from tinyssl.files import write_text
from tinyssl.picture import (
    ResizeRule,
    decode,
    is_gray,
    is_sixteen_bit,
    quiet,
    resize,
    to_channels,
    to_depth,
)

CACHE_FORMAT = 1
_IN_FLIGHT = 64

_NOT_PICTURES = {".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".wmf", ".emf", ".h5", ".hdf", ".grib"}
_NOT_PICTURES |= {".bufr", ".fli", ".flc", ".xbm", ".palm", ".im", ".msp", ".fits", ".fit"}


def _extensions() -> frozenset[str]:
    Image.init()
    readable = {s for s, name in Image.EXTENSION.items() if name in Image.OPEN}
    return frozenset(readable - _NOT_PICTURES)


IMAGE_EXTENSIONS = _extensions()


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures in their cache.

    Attributes:
        array: (n, s, s, c) uint8 or uint16, a read-only memory map.
        paths: n absolute paths.
        hashes: n digests of the files' bytes.
        skipped: files that could not be read, with the reason.
        digest: of paths and hashes: which pictures these are.
        folder: where the cache lies.
    """

    array: NDArray[Any]
    paths: list[str]
    hashes: list[str]
    skipped: list[tuple[str, str]]
    digest: str
    folder: Path

    def duplicates(self) -> list[list[int]]:
        """Groups of two and more pictures whose files are equal to the byte."""
        groups: dict[str, list[int]] = {}
        for number, digest in enumerate(self.hashes):
            groups.setdefault(digest, []).append(number)
        return [group for group in groups.values() if len(group) > 1]

    def statistics(self, sample: int = 2000) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in units of [0, 1].

        Over at most `sample` evenly spaced pictures; a constant channel has 0.001.
        """
        rows = np.unique(np.linspace(0, len(self.array) - 1, min(sample, len(self.array))).round())
        scale = float(np.iinfo(self.array.dtype).max)
        moments = np.zeros((2, self.array.shape[3]))
        for row in rows.astype(int):
            picture = self.array[row] / scale
            moments += np.stack([picture.mean(axis=(0, 1)), np.square(picture).mean(axis=(0, 1))])
        mean, square = moments / len(rows)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return mean.tolist(), np.maximum(std, 1e-3).tolist()


def default_cache_dir() -> Path:
    """`$TINYSSL_CACHE`, or tinyssl's folder in the user's cache folder."""
    given = os.environ.get("TINYSSL_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tinyssl"


def scan(sources: Sequence[str | Path]) -> list[Path]:
    """Finds the pictures of folders (at any depth), picture files and .txt or .csv lists.

    Hidden files are passed over; linked folders are entered once. A list has one path a line, or
    the column `path` (else its first); its relative paths count from its folder, or else from
    the current one. Listed files may be missing: reading them says so later.

    Returns:
        Absolute paths, sorted, none twice.

    Raises:
        UsageError: a source is missing, or no picture was found.
    """
    found: set[str] = set()
    for source in sources:
        names = set(_names(source))
        if not names:
            raise UsageError(
                f"no pictures in {source}; looked for files ending in .jpg .png .tif .bmp .webp "
                "and Pillow's other formats, at any depth"
            )
        found |= names
    return [Path(name) for name in sorted(found)]


def load_pictures(
    files: Sequence[Path],
    *,
    size: int,
    rule: ResizeRule,
    channels: int | Literal["auto"] = "auto",
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Pictures:
    """Decodes pictures into a cache, or finds them there if nothing has changed.

    What counts as a change: the list of files, any file's size or time, and the settings here.

    Args:
        files: from `scan`.
        size: pixels a side.
        rule: how a picture becomes square.
        channels: 1 to 4; `auto` is 1 when every picture is gray, else 3.
        cache_dir: holds one folder per key; the user's cache folder when None.
        workers: threads; 0 is one a CPU core.
        progress: told the number of newly finished pictures.

    Raises:
        JobError: no picture can be read, or the cache cannot be written.
    """
    root = cache_dir if cache_dir is not None else default_cache_dir()
    folder = root / fingerprint(files, f"{CACHE_FORMAT} {size} {rule} {channels}")
    found = _open(folder)
    if found is not None:
        if progress is not None:
            progress(len(files))
        return found
    try:
        with quiet():
            _build(files, size, rule, channels, folder, workers or os.cpu_count() or 1, progress)
    except OSError as error:
        raise JobError(f"cannot write the cache {folder}: {error.strerror or error}") from error
    built = _open(folder)
    if built is None:
        raise JobError(f"the cache {folder} was damaged while it was made; try again")
    return built


def read_picture(
    path: Path, size: int, rule: ResizeRule, channels: int, dtype: Any
) -> tuple[str, NDArray[Any]] | str:
    """The digest of a file's bytes and its picture (size, size, channels), or why there is none."""
    try:
        data = path.read_bytes()
        picture = to_depth(to_channels(decode(data, channels), channels), dtype)
        return hashlib.blake2b(data, digest_size=16).hexdigest(), resize(picture, size, rule)
    except OSError as error:
        return error.strerror or str(error)
    except TinysslError as error:
        return str(error)


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Path], Any],
    items: Sequence[Path],
    in_flight: int = _IN_FLIGHT,
) -> Iterator[Any]:
    """Results in order, with few items in flight: memory does not grow with their number."""
    waiting = iter(items)
    futures = deque(pool.submit(work, item) for item in islice(waiting, in_flight))
    while futures:
        result = futures.popleft().result()
        futures.extend(pool.submit(work, item) for item in islice(waiting, 1))
        yield result


def fingerprint(files: Sequence[Path], settings: str) -> str:
    """A key that changes with the list of files, any file's size or time, and the settings."""
    digest = hashlib.blake2b(settings.encode(), digest_size=10)
    for path in files:
        try:
            status = path.stat()
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "missing"
        digest.update(f"\0{path}\0{stamp}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Writes `path,reason` rows; atomic."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "reason"), *skipped])
    write_text(path, text.getvalue())


def _names(source: str | Path) -> Iterable[str]:
    path = Path(os.path.abspath(source))
    if path.is_dir():
        return _walk(path)
    if not path.is_file():
        raise UsageError(f"no folder or file {source}; give one that exists")
    return _listed(path) if path.suffix.lower() in (".txt", ".csv") else [str(path)]


def _walk(folder: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(base)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                yield os.path.join(base, name)


def _listed(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the list {path}: {error}") from None
    stripped = (line.strip() for line in text.splitlines())
    lines = [line for line in stripped if line and not line.startswith("#")]
    if path.suffix.lower() == ".csv":
        rows = list(csv.reader(lines))
        column = rows[0].index("path") if rows and "path" in rows[0] else 0
        lines = [row[column] for row in rows if len(row) > column and row[column] != "path"]
    for line in lines:
        beside, here = path.parent / line, Path.cwd() / line
        yield os.path.abspath(here if not beside.exists() and here.exists() else beside)


def _build(
    files: Sequence[Path],
    size: int,
    rule: ResizeRule,
    channels: int | Literal["auto"],
    folder: Path,
    workers: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Builds in a folder of its own and renames it, so that a cache is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        with ThreadPoolExecutor(workers) as pool:
            kind, channels = _survey(files, channels, pool)
            index = _decode_all(files, size, rule, channels, kind, temporary, pool, progress)
        if not index["paths"]:
            path, reason = index["skipped"][0]
            raise JobError(
                f"none of the {len(files)} pictures can be read; first: {path}: {reason}"
            )
        write_skipped(temporary / "skipped.csv", [tuple(row) for row in index["skipped"]])
        write_text(temporary / "index.json", json.dumps(index))
        temporary.chmod(0o755)
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Renames; what another process finished first is kept, what is damaged is replaced."""
    if folder.exists() and _open(folder) is None:
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if _open(folder) is None:
            raise


def _survey(
    files: Sequence[Path], channels: int | Literal["auto"], pool: ThreadPoolExecutor
) -> tuple[Any, int]:
    """Reads headers to settle the array's dtype and channels before it is allocated."""
    kinds = {kind for kind in in_order(pool, _header, files) if kind is not None}
    dtype = np.uint16 if any(deep for deep, _ in kinds) else np.uint8
    if channels == "auto":
        channels = 1 if all(gray for _, gray in kinds) else 3
    return dtype, channels


def _header(path: Path) -> tuple[bool, bool] | None:
    try:
        with Image.open(path) as image:
            return is_sixteen_bit(image), is_gray(image)
    except Exception:  # unreadable for whatever reason: decoding tells it later
        return None


def _decode_all(
    files: Sequence[Path],
    size: int,
    rule: ResizeRule,
    channels: int,
    dtype: Any,
    folder: Path,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    def work(path: Path) -> tuple[str, NDArray[Any]] | str:
        return read_picture(path, size, rule, channels, dtype)

    index: dict[str, Any] = {"paths": [], "hashes": [], "skipped": []}
    with (folder / "pictures.bin").open("wb") as file:
        for path, result in zip(files, in_order(pool, work, files), strict=True):
            if isinstance(result, str):
                index["skipped"].append([str(path), result])
            else:
                file.write(result[1].tobytes())
                index["paths"].append(str(path))
                index["hashes"].append(result[0])
            if progress is not None:
                progress(1)
        file.flush()
        os.fsync(file.fileno())
    shape = [len(index["paths"]), size, size, channels]
    return index | {"shape": shape, "dtype": np.dtype(dtype).name}


def _open(folder: Path) -> Pictures | None:
    """The cache in a folder; None where there is none that is whole."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        dtype, shape = np.dtype(index["dtype"]), tuple(index["shape"])
        whole = (folder / "pictures.bin").stat().st_size == math.prod(shape) * dtype.itemsize
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    array = np.memmap(folder / "pictures.bin", dtype, "r", shape=shape)
    identity = hashlib.blake2b(json.dumps([index["paths"], index["hashes"]]).encode())
    return Pictures(
        array=array,
        paths=index["paths"],
        hashes=index["hashes"],
        skipped=[(path, reason) for path, reason in index["skipped"]],
        digest=identity.hexdigest()[:32],
        folder=folder,
    )
