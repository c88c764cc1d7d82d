"""`tinyssl select`: chooses the pictures to label first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyssl.choosing import METHODS, choose
from tinyssl.console import log
from tinyssl.embedding import embed_paths
from tinyssl.errors import JobError, UsageError, refuse_seed
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.feature_file import Features
from tinyssl.files import as_list, csv_text, refuse_other_table, writable, write_text
from tinyssl.grid import contact_sheet, refuse_other_sheet, write_sheet
from tinyssl.labels import LabeledPaths, from_csv
from tinyssl.opening import reading
from tinyssl.picture import decode, resize, to_depth
from tinyssl.scanning import scan

_SHOWN = 400  # pictures on a contact sheet; more would not be looked at
_THUMBNAIL = 112
_COLUMNS = ["path", "label", "order"]


@dataclass(frozen=True)
class Selected:
    """The result of `select`: the list to label, its contact sheet, the pictures in order."""

    out: Path
    sheet: Path
    paths: list[str]


def select(
    run: str | Path,
    data: str | Path | Sequence[str | Path],
    budget: int,
    out: str | Path,
    *,
    method: str = "kmeans",
    labeled: str | Path | None = None,
    features: str | Path | None = None,
    copy_to: str | Path | None = None,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Selected:
    """Chooses the most informative pictures to label, and writes a list to fill in.

    Of exact copies at most one is chosen. The list has the columns path,label,order with empty
    labels, in the order in which to label; a PNG of the same name shows the choice. Labels of
    earlier rounds are included, without an order, so that the filled-in list is complete.

    Args:
        run: a run folder or a bundle.
        data: folders, picture files, .txt or .csv lists.
        budget: number of pictures.
        out: the CSV.
        method: kmeans, typiclust, kcenter or random; see `tinyssl.choosing`.
        labeled: a CSV path,label of earlier rounds; rows without a label can be chosen again.
        features: keeps the features for the next round (.parquet or .npz); used if it fits.
        copy_to: a new or empty folder for copies, named after their order: `07-name.png`.
        seed: of all random choices.
        workers: threads that decode; 0 is one a CPU core.
        device: auto, cpu, cuda or cuda:N.
        overwrite: replace an earlier list in `out`, and features that do not fit.

    Raises:
        UsageError: fewer pictures than the budget or none without a label, an unknown method, an
            impossible seed, no encoder, no pictures, another kind of `features`, or `out` or
            `copy_to` is in use.
        JobError: pictures cannot be copied; the list is written.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the same call continues.
    """
    target, sheet = Path(out), _sheet_of(Path(out))
    refuse_seed(seed)
    _refuse(target, sheet, method, budget, overwrite)
    earlier = None if labeled is None else from_csv(labeled)
    known = set() if earlier is None else {str(path) for path in earlier.paths}
    sources = as_list(data)
    found = _found(sources, target, sheet)
    folder = None if copy_to is None else _refuse_copies(Path(copy_to), sources)
    left, why = len(found - known), f"{len(found):,} there, {len(found & known):,} labeled already"
    _refuse_budget(budget, left, why, ", less copies and unreadable ones")
    extractor = open_extractor(run, device=device)
    paths = [Path(name) for name in sorted(found | known)]
    embedded = _features(extractor, paths, target, features, workers, overwrite)
    rows, covered = _candidates(embedded, known)
    free = int((~covered).sum())
    _refuse_budget(budget, free, f"{why}, {left - free:,} copies of others or unreadable")
    chosen = choose(embedded.features[rows], budget, method=method, covered=covered, seed=seed)
    names = [embedded.paths[row] for row in rows[chosen]]
    write_text(target, _csv(names, earlier))
    _write_sheet(sheet, names, extractor.max_pixels)
    if folder is not None:
        _copy(names, folder)
    return Selected(target, sheet, names)


def _found(sources: Sequence[str | Path], target: Path, sheet: Path) -> set[str]:
    """The pictures found; refuses to replace any of them or a list of them."""
    found = {str(path) for path in scan(sources)}
    if target.exists():
        found.discard(os.path.abspath(sheet))  # of an earlier choice among these pictures
    refuse_other_table(writable(target, ".csv", sources), _COLUMNS, [*_COLUMNS, "split"])
    refuse_other_sheet(sheet, found)
    return found


def _sheet_of(target: Path) -> Path:
    if target.suffix != ".csv":
        raise UsageError(f"--out: got {target}; its name must end in .csv")
    return target.with_suffix(".png")


def _refuse(target: Path, sheet: Path, method: str, budget: int, overwrite: bool) -> None:
    if method not in METHODS:
        raise UsageError(f"method: got {method!r}, allowed are {', '.join(METHODS)}")
    if budget < 1:
        raise UsageError(f"budget: got {budget}; give 1 or more")
    for path in (target, sheet):
        if path.is_dir() or (path.exists() and not overwrite):
            raise UsageError(
                f"{path} exists, maybe with labels in it; name another --out, or give --overwrite"
            )


def _refuse_copies(folder: Path, sources: Iterable[str | Path]) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"copy_to: {folder} is there and not an empty folder; name a new one")
    real = Path(os.path.realpath(folder))
    for source in sources:
        if real.is_relative_to(os.path.realpath(source)):
            raise UsageError(
                f"copy_to: {folder} lies in {source}, where its copies would be found as pictures; "
                "name a folder elsewhere"
            )
    return folder


def _refuse_budget(budget: int, free: int, why: str, less: str = "") -> None:
    if free == 0:
        raise UsageError(f"no picture is left to choose from: {why}")
    if budget > free:
        raise UsageError(
            f"budget: got {budget:,}, but {free:,} pictures are left to choose from ({why}); "
            f"give at most {free:,}{less}"
        )


def _features(
    extractor: Extractor,
    paths: Sequence[Path],
    target: Path,
    kept: str | Path | None,
    workers: int,
    overwrite: bool,
) -> Features:
    file = target.with_name(f".{target.name}.features.npz") if kept is None else Path(kept)
    if file.suffix == ".csv":
        raise UsageError(
            f"--features: got {file}; a csv cannot say what it was made of: name a .parquet or .npz"
        )
    embedded = embed_paths(
        extractor,
        paths,
        file,
        # Features that are kept have parts of their own, by which another `select` knows of them.
        beside=target if kept is None else None,
        workers=workers,
        overwrite=overwrite or kept is None,
    )
    try:
        return embedded.read()
    finally:
        if kept is None:
            file.unlink(missing_ok=True)


def _candidates(
    features: Features, labeled: set[str]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """One row of each set of equal files, and whether one of them is labeled."""
    first: dict[str, int] = {}
    covered: set[str] = set()
    for row, (path, digest) in enumerate(zip(features.paths, features.digests, strict=True)):
        first.setdefault(digest, row)
        if path in labeled:
            covered.add(digest)
    return np.array(list(first.values())), np.array([digest in covered for digest in first])


def _csv(names: Sequence[str], earlier: LabeledPaths | None) -> str:
    header, rows = list(_COLUMNS), [[n, "", i] for i, n in enumerate(names, 1)]
    if earlier is not None:
        rows += [[str(p), n, ""] for p, n in zip(earlier.paths, earlier.labels, strict=True)]
        if earlier.splits is not None:  # or test pictures would become training pictures
            header.append("split")
            splits = ["train"] * len(names) + earlier.splits
            rows = [[*row, split] for row, split in zip(rows, splits, strict=True)]
    return csv_text([header, *rows])


def _copy(names: Sequence[str], folder: Path) -> None:
    """Copies all of the pictures, or none."""
    digits = len(str(len(names)))
    copies = [folder / f"{n:0{digits}}-{Path(name).name}" for n, name in enumerate(names, 1)]
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, copy in zip(names, copies, strict=True):
            with Path(name).open("rb") as picture, copy.open("xb") as file:
                made.append(copy)
                shutil.copyfileobj(picture, file)
    except OSError as error:
        for copy in made:
            copy.unlink(missing_ok=True)
        told = f"{error.filename or folder}: {error.strerror or error}"
        raise JobError(
            f"cannot copy the pictures to {folder}: {told}; the list is whole"
        ) from error


def _write_sheet(path: Path, names: Sequence[str], max_pixels: int) -> None:
    shown = names[:_SHOWN]
    with reading(max_pixels):
        pictures = [
            resize(to_depth(decode(Path(name)), np.uint8), _THUMBNAIL, "pad") for name in shown
        ]
    sheet = contact_sheet(pictures, [str(number) for number in range(1, len(shown) + 1)])
    write_sheet(path, sheet)
    if len(names) > len(shown):
        log.info(f"{path} shows the first {len(shown)} of {len(names):,}")
