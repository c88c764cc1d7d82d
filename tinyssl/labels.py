"""Labels from class folders or a CSV, and stratified splits."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log
from tinyssl.errors import UsageError
from tinyssl.files import (
    above_header,
    csv_text,
    delimiter_of,
    is_utf8,
    read_limited,
    reason,
    table_text,
    write_text,
)
from tinyssl.scanning import find_listed, pictures_below

_LARGEST = 1 << 28  # bytes; a list of labels, not pictures
SPLITS = ("train", "test")
_PARTS = {*SPLITS, "training", "testing", "val", "valid", "validation", "dev", "holdout"}
_NOT_UTF8 = "cannot read labels from {}: not UTF-8; save it as such"


@dataclass(frozen=True)
class LabeledPaths:
    """Pictures with their class names, and with their splits if given.

    `unlabeled` counts rows of a CSV with an empty label, `repeated` rows that repeat an earlier
    one; `empty` names class folders without pictures.
    """

    paths: list[Path]
    labels: list[str]
    splits: list[str] | None = None
    unlabeled: int = 0
    repeated: int = 0
    empty: tuple[str, ...] = ()


def read_labels(source: str | Path) -> LabeledPaths:
    """Labels of a CSV, of class folders, or of class folders in `train/` and `test/`.

    Raises:
        UsageError: as `from_csv` and `from_class_folders`, or folders that seem to be other splits.
    """
    root = Path(source)
    if not root.is_dir():
        return from_csv(source)
    names = _folders(root)
    if set(SPLITS) <= set(names) and all(_folders(root / part) for part in SPLITS):
        if len(names) > len(SPLITS):
            others = ", ".join(name for name in names if name not in SPLITS)
            log.warning(f"{source}: train and test are read, {others} left out")
        return _from_parts({part: from_class_folders(root / part) for part in SPLITS})
    _refuse_parts(root, names)
    return from_class_folders(source)


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _from_parts(parts: Mapping[str, LabeledPaths]) -> LabeledPaths:
    return LabeledPaths(
        [path for part in parts.values() for path in part.paths],
        [name for part in parts.values() for name in part.labels],
        [split for split, part in parts.items() for _ in part.paths],
        empty=parts["train"].empty,
    )


def _refuse_parts(root: Path, names: Sequence[str]) -> None:
    """Refuses folders that are all named like splits and contain folders, as classes."""
    if names and _PARTS.issuperset(names) and all(_folders(root / name) for name in names):
        raise UsageError(
            f"{root} holds {', '.join(names)}: parts of a set by their names, and no classes; "
            f"give one of them, or call the two that are wanted {' and '.join(SPLITS)}"
        )


def from_class_folders(folder: str | Path) -> LabeledPaths:
    """Every picture below `folder/<class>/`, as `scan` finds them, labeled by its class.

    Args:
        folder: has one folder per class.

    Raises:
        UsageError: no such folder, or fewer than two classes with pictures in it.
    """
    root = Path(os.path.abspath(folder))  # without "..", like all other paths
    if not root.is_dir():
        raise UsageError(f"no folder {folder}; give one with a sub-folder of pictures per class")
    paths: list[Path] = []
    labels: list[str] = []
    empty: list[str] = []
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            found = [Path(name) for name in sorted(pictures_below(child))]
            paths += found
            labels += [child.name] * len(found)
            empty += [] if found else [child.name]
    if len(set(labels)) < 2:
        raise UsageError(
            f"{folder} holds pictures of {len(set(labels))} class folders; at least 2 are needed, "
            f"laid out as {folder}/<class>/picture.png"
        )
    _warn_of_alike(labels)
    return LabeledPaths(paths, labels, empty=tuple(empty))


def from_csv(path: str | Path) -> LabeledPaths:
    """Reads a CSV with the columns `path,label` and optionally `split` (train or test).

    As spreadsheets write it: with commas, semicolons or tabs, a byte-order mark, in UTF-16, with
    more columns, and with empty lines or `sep=;` above the header.
    Relative paths are resolved from the CSV's folder or the current one, whichever has the file.
    Rows with an empty label are counted and left out.

    Raises:
        UsageError: unreadable, columns missing, an unknown split, a missing picture, or one
            picture with two labels; the text names the line.
    """
    rows = _rows(Path(path))
    seen: dict[Path, tuple[str, str]] = {}
    missing: list[str] = []
    unlabeled = repeated = 0
    for line, row in rows:
        where = f"{path}, line {line}"
        name, label = row["path"] or "", (row["label"] or "").strip()
        if "\0" in name + label:
            raise UsageError(f"{where}: a zero byte in {(name + label)[:80]!r}")
        found = find_listed(Path(path), name, os.path.isfile)
        picture = None if found is None else Path(found)
        if not is_utf8(label) or (picture is None and not is_utf8(name)):
            raise UsageError(_NOT_UTF8.format(path))
        if not label:
            unlabeled += 1
        elif picture is None:
            missing.append(f"{where}: no picture {name!r}")
        else:
            repeated += picture in seen
            _note(seen, picture, label, _split(row.get("split"), where), where)
    if missing:
        raise UsageError(_tell_missing(missing, [Path(path).absolute().parent, Path.cwd()]))
    labels = [label for label, _ in seen.values()]
    _warn_of_alike(labels)
    splits = [split for _, split in seen.values()]
    if not labels and not unlabeled:
        raise UsageError(f"{path} has no rows below its header; give one picture a row")
    if not labels:
        raise UsageError(
            f"{path} labels no picture ({unlabeled} rows have an empty label); fill in the labels"
        )
    if any(splits) and not all(splits):
        raise UsageError(f"{path}: {splits.count('')} rows have no split; give all or none")
    return LabeledPaths(list(seen), labels, splits if any(splits) else None, unlabeled, repeated)


def stratified_split(labels: Sequence[str], *, seed: int = 0) -> NDArray[np.bool_]:
    """Draws a quarter of each class as test rows, deterministically for given labels and seed.

    Every class keeps at least one training row; a class with one row gets no test row.

    Returns:
        (n,) True for test rows.
    """
    generator = np.random.default_rng(seed)
    names = np.asarray(labels)
    test = np.zeros(len(names), dtype=bool)
    for name in sorted(set(labels)):
        rows = np.flatnonzero(names == name)
        count = min(round(len(rows) / 4), len(rows) - 1)
        test[generator.permutation(rows)[:count]] = True
    return test


def write_csv(
    path: Path,
    pictures: Sequence[str | Path],
    labels: Sequence[str],
    splits: Sequence[str] | None = None,
) -> None:
    """Writes `path,label[,split]` for `from_csv`, atomically."""
    columns: list[Sequence[object]] = [pictures, labels]
    header = ["path", "label"]
    if splits is not None:
        columns.append(splits)
        header.append("split")
    write_text(path, csv_text([header, *zip(*columns, strict=True)]))


def _warn_of_alike(labels: Iterable[str]) -> None:
    """Warns of class names that differ only in case or in how accents are encoded."""
    first: dict[str, str] = {}
    for name in sorted(set(labels)):
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            log.warning(f"the labels {other!r} and {name!r} are two classes; are they one?")


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        # File names may be of any bytes, which `write_csv` keeps; labels may not.
        text = table_text(read_limited(path, _LARGEST))
    except OSError as error:
        raise UsageError(f"cannot read labels from {path}: {reason(error, 0)}") from None
    except ValueError as error:
        raise UsageError(f"cannot read labels from {path}: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
    try:
        header = next((row for row in reader.reader if not above_header(row)), [])
        reader.fieldnames = [name.strip().lower() for name in header]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UsageError(f"cannot read labels from {path}: {error}") from None
    _refuse_open_quote(path, text, rows)
    columns = list(reader.fieldnames or [])
    if not is_utf8("".join(columns)):
        raise UsageError(_NOT_UTF8.format(path))
    if not {"path", "label"} <= set(columns):
        raise UsageError(
            f"{path} has the columns {', '.join(columns) or '(none)'}; "
            "the first line must name path,label and optionally split, with commas, semicolons or "
            "tabs between"
        )
    for name in ("path", "label", "split"):
        if columns.count(name) > 1:
            raise UsageError(f"{path} has {columns.count(name)} columns {name}; keep one of them")
    for line, row in rows:
        surplus: Any = row.get(None)
        if (row["label"] or "").strip() and any(cell.strip() for cell in surplus or ()):
            raise UsageError(
                f"{path}, line {line}: more cells than columns; put a label with a comma in "
                "quotes, or name the column of a note"
            )
    return rows


def _refuse_open_quote(path: Path, text: str, rows: Sequence[tuple[int, dict[str, str]]]) -> None:
    """Refuses an unclosed quote, which would make one cell of the rest of the file."""
    last: list[Any] = list(rows[-1][1].values()) if rows else []
    if text.count('"') % 2 and any("\n" in cell for cell in last if isinstance(cell, str)):
        line = rows[-2][0] if len(rows) > 1 else 1
        raise UsageError(
            f"cannot read labels from {path}: a quote is opened in the row after line {line} and "
            "not closed"
        )


def _note(
    seen: dict[Path, tuple[str, str]], picture: Path, label: str, split: str, where: str
) -> None:
    known = seen.setdefault(picture, (label, split))
    if known != (label, split):
        raise UsageError(
            f"{where}: {picture} is {label} {split}".rstrip()
            + f" here and {' '.join(known).rstrip()} further up; keep one of the two"
        )


def _tell_missing(missing: Sequence[str], bases: Sequence[Path]) -> str:
    looked = " and ".join(dict.fromkeys(map(str, bases)))
    more = f"; {len(missing)} labeled pictures are missing in all" if len(missing) > 1 else ""
    return f"{missing[0]} (looked in {looked}){more}"


def _split(value: str | None, where: str) -> str:
    split = (value or "").strip().lower()
    if split and split not in SPLITS:
        raise UsageError(f"{where}: split {value!r} is not one of {', '.join(SPLITS)}")
    return split
