"""`tinyssl embed`: features of any number of pictures, in one file.

Pictures are decoded in threads while the encoder works. Finished chunks are kept in a folder beside
the result until it is complete, so that a stopped job can continue.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log, progress
from tinyssl.data import fingerprint, in_order, worker_count, write_skipped
from tinyssl.errors import Interrupted, JobError, NothingReadable, UsageError
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.feature_file import (
    DAMAGED,
    Features,
    check_dtype_and_batch,
    check_format,
    read_features,
    read_key,
    write_features,
)
from tinyssl.files import (
    as_list,
    atomic,
    is_remote,
    is_utf8,
    refuse_input,
    refuse_other_table,
    remove_leftovers,
    write_text,
)
from tinyssl.locks import InUse, locked
from tinyssl.scanning import scan
from tinyssl.signals import stop_signal

CHUNK = 512  # the most pictures that an interruption can cost
_FORMAT, _KEY = 1, "key.txt"


@dataclass(frozen=True)
class Embedded:
    """The file that `embed` wrote, with its number of pictures and of skipped ones."""

    out: Path
    pictures: int
    skipped: int
    extractor: Extractor = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """For pools of processes, which can hand on no open encoder."""
        return {**vars(self), "extractor": None}

    def read(self) -> Features:
        """Paths, digests and features (n, width), all in memory."""
        return read_features(self.out)


def embed(
    run: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    raw: bool = False,
    dtype: str = "float32",
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Embedded:
    """Writes the features of pictures, the same from a run and from its bundle.

    Pictures that cannot be read are listed in `<out>.skipped.csv`. Finished chunks are kept in
    `<out>.parts/` until the file is complete; the same call continues with them. A .parquet or
    .npz that already holds these features is left as it is; a .csv does not record what it holds.
    Pictures that a run has left decoded in the user's cache are taken from there.

    Args:
        run: a run folder or a bundle.
        data: folders, picture files, .txt or .csv lists.
        out: ends in .parquet, .npz or .csv.
        raw: leave features as the encoder gives them; else each has length 1.
        dtype: float32 or float16.
        batch_size: pictures at a time.
        workers: threads that decode; 0 is one a CPU core.
        device: auto, cpu, cuda or cuda:N.
        overwrite: replace another file at `out`.

    Raises:
        UsageError: no encoder, no pictures, an unknown format or dtype, or `out` is in use.
        JobError: no picture can be read, or a file cannot be written.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the same call continues.
    """
    sources = as_list(data)
    _refuse_addresses([*sources, out])
    check_format(Path(out))
    extractor = open_extractor(run, raw=raw, device=device)
    paths = scan(sources)
    refuse_input(Path(out), sources)
    return embed_paths(
        extractor,
        paths,
        Path(out),
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        overwrite=overwrite,
    )


def embed_paths(
    extractor: Extractor,
    paths: Sequence[Path],
    out: Path,
    *,
    beside: Path | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    workers: int = 0,
    overwrite: bool = False,
) -> Embedded:
    """As `embed`, with an open encoder and a list of files.

    Args:
        extractor: from `open_extractor`.
        paths: of the pictures, none twice.
        out: as in `embed`.
        beside: names the folder of parts and the list of skipped pictures; `out` when None. Jobs
            that write one `out` need one folder of parts, which tells them of each other.
        dtype: as in `embed`.
        batch_size: as in `embed`.
        workers: as in `embed`.
        overwrite: as in `embed`.
    """
    _refuse(out, paths, dtype, batch_size)
    workers = worker_count(workers)
    key = fingerprint(paths, f"{_FORMAT} {extractor.identity} {dtype} {CHUNK}")
    there, _, count = (read_key(out) or "").partition(" ")
    if there == key:
        log.info(f"{out} is up to date")
        return Embedded(out, int(count), len(paths) - int(count), extractor)
    if not overwrite:
        _refuse_existing(out)
    folder = _named_after(beside or out, ".parts")
    skipped_list = _named_after(beside or out, ".skipped.csv")
    refuse_other_table(skipped_list, ("path", "reason"))
    with ExitStack() as held:
        _start_parts(folder, key, held)
        remove_leftovers(out.parent, {out.name})  # of a job that was killed while it wrote
        parts = _compute(extractor, paths, folder, dtype, batch_size, workers)
        skipped = [(str(paths[i]), reason) for part in parts for i, reason in _skipped(part)]
        written = len(paths) - len(skipped)
        if written:
            blocks = (_features(part, paths) for part in parts)
            write_features(out, blocks, (written, extractor.width), dtype, f"{key} {written}")
            _tell_skipped(skipped_list, skipped)
        shutil.rmtree(folder)
    if not written:
        raise NothingReadable.of(skipped)
    return Embedded(out, written, len(skipped), extractor)


def read_some(extractor: Extractor, paths: Sequence[str | Path]) -> NDArray[Any]:
    """A few pictures (n, s, s, c) as the encoder takes them; UsageError for an unreadable one."""
    pictures = []
    for path in paths:
        with extractor.reading():
            read = extractor.read(Path(path))
        if isinstance(read, str):
            raise UsageError(f"picture {path} cannot be used: {read}")
        pictures.append(read[1])
    return np.stack(pictures)


def _named_after(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _refuse_addresses(places: Sequence[str | Path]) -> None:
    for place in map(str, places):
        if is_remote(place) and not os.path.exists(place):
            raise UsageError(
                f"{place} is an address: give --engine ray, which takes a bundle and works on such"
            )


def _refuse(out: Path, paths: Sequence[Path], dtype: str, batch_size: int) -> None:
    check_format(out)
    check_dtype_and_batch(dtype, batch_size)
    odd = [str(path) for path in paths if not is_utf8(str(path))]
    if out.suffix == ".parquet" and odd:
        raise UsageError(f"parquet holds names in UTF-8 only, {odd[0]!r} is not; use .npz or .csv")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        why = (
            "a .csv cannot say which features it holds"
            if out.suffix == ".csv"
            else "holds none of these features (other pictures, or another encoder)"
        )
        raise UsageError(f"{out} exists and {why}; name another file, or give --overwrite")


def _start_parts(folder: Path, key: str, held: ExitStack) -> None:
    """Makes and locks the folder of parts; those of another job are removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
        if (folder / _KEY).is_file():
            if (folder / _KEY).read_text(encoding="utf-8", errors="replace") == key:
                return
            log.info(f"{folder} is of another encoder, list or option: starting afresh")
            for path in folder.iterdir():
                path.unlink()
        if any(not path.name.startswith(f".{_KEY}.") for path in folder.iterdir()):
            raise UsageError(f"{folder} is not empty, and not of tinyssl; move it, or change --out")
    except InUse:
        raise UsageError(
            f"another tinyssl writes {folder}; wait for it, or name another file"
        ) from None
    except OSError as error:
        raise JobError(f"cannot make {folder}: {error.strerror or error}") from error
    write_text(folder / _KEY, key)


def _compute(
    extractor: Extractor,
    paths: Sequence[Path],
    folder: Path,
    dtype: str,
    batch_size: int,
    workers: int,
) -> list[Path]:
    """Computes and writes the missing chunks; returns the parts in order."""
    chunks = [range(i, min(i + CHUNK, len(paths))) for i in range(0, len(paths), CHUNK)]
    left = [chunk for chunk in chunks if not _is_whole(_part(folder, chunk), chunk)]
    numbers = [i for chunk in left for i in chunk]
    if len(numbers) < len(paths):
        log.info(f"{len(paths) - len(numbers):,} of {len(paths):,} pictures are there already")
    wanted, cached = [paths[i] for i in numbers], extractor.cached(paths)
    with (
        stop_signal() as stopped,
        ThreadPoolExecutor(workers) as pool,
        extractor.reading(),
        progress("embedding", len(numbers)) as advance,
    ):
        # The threads decode the next batch while the encoder works; for cached pictures, which
        # need no decoding, they would only slow it down.
        read = (
            map(cached, wanted)
            if cached
            else in_order(pool, extractor.read, wanted, 2 * batch_size)
        )
        while left:
            blocks = []
            for batch in _batches(left[0], batch_size):
                blocks.append(_embed(extractor, batch, list(islice(read, len(batch)))))
                advance(len(batch))
                if batch.stop < left[0].stop:
                    _stop_if(stopped(), folder, len(paths), left)
            _write_part(_part(folder, left.pop(0)), blocks, dtype)
            if left:
                _stop_if(stopped(), folder, len(paths), left)
    return [_part(folder, chunk) for chunk in chunks]


def _batches(chunk: range, size: int) -> list[range]:
    return [range(i, min(i + size, chunk.stop)) for i in range(chunk.start, chunk.stop, size)]


def _stop_if(signum: int | None, folder: Path, total: int, left: Sequence[range]) -> None:
    if signum is None:
        return
    kept = total - sum(map(len, left))
    raise Interrupted(
        f"stopped; {kept:,} of {total:,} pictures are kept in {folder}; "
        "the same command goes on from there",
        signum,
    )


@dataclass(frozen=True)
class _Block:
    """A batch: numbers, digests and features (m, width) of m pictures; the others' reasons."""

    numbers: list[int]
    digests: list[str]
    features: NDArray[np.float32]
    skipped: list[tuple[int, str]]


def _embed(extractor: Extractor, batch: range, read: Sequence[Any]) -> _Block:
    good = [(i, *r) for i, r in zip(batch, read, strict=True) if not isinstance(r, str)]
    skipped = [(i, r) for i, r in zip(batch, read, strict=True) if isinstance(r, str)]
    if good:
        features = extractor.features(np.stack([picture for _, _, picture in good]))
    else:
        features = np.empty((0, extractor.width), np.float32)
    return _Block([i for i, _, _ in good], [digest for _, digest, _ in good], features, skipped)


def _part(folder: Path, chunk: range) -> Path:
    return folder / f"{chunk.start:09}.npz"


def _write_part(path: Path, blocks: Sequence[_Block], dtype: str) -> None:
    with atomic(path, sum(b.features.nbytes for b in blocks)) as file:
        np.savez(
            file,
            features=np.concatenate([b.features for b in blocks]).astype(dtype),
            numbers=np.array([i for b in blocks for i in b.numbers], np.int64),
            digests=np.array([digest for b in blocks for digest in b.digests], str),
            skipped=np.array(json.dumps([s for b in blocks for s in b.skipped])),
        )


def _is_whole(part: Path, chunk: range) -> bool:
    """Whether a part exists and is undamaged: a power cut may have truncated it."""
    try:
        with part.open("rb") as file, np.load(file, allow_pickle=False) as found:
            sizes = {len(found[name]) for name in ("numbers", "digests", "features")}
            skipped = len(json.loads(str(found["skipped"])))
            return sizes == {len(chunk) - skipped}
    except DAMAGED:
        return False


def _features(part: Path, paths: Sequence[Path]) -> Features:
    with np.load(part, allow_pickle=False) as found:
        names = [str(paths[i]) for i in found["numbers"]]
        return Features(names, found["digests"].tolist(), found["features"])


def _skipped(part: Path) -> Iterator[tuple[int, str]]:
    with np.load(part, allow_pickle=False) as found:
        yield from json.loads(str(found["skipped"]))


def _tell_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    if not skipped:
        path.unlink(missing_ok=True)  # of an earlier job
        return
    write_skipped(path, skipped)
    first, reason = skipped[0]
    log.warning(f"{len(skipped):,} pictures skipped, see {path}; first: {first}: {reason}")
