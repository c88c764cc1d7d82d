"""Finds pictures in folders, lists and single files."""

from __future__ import annotations

import csv
import io
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tinyssl.errors import UsageError
from tinyssl.files import above_header, delimiter_of, is_utf8, read_limited, table_text
from tinyssl.opening import IMAGE_EXTENSIONS

# Without TIFF, like which raw files of cameras begin, and BMP, which is two letters only.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")  # of Unicode
_LARGEST_LIST = 1 << 28  # bytes; a list of pictures, not pictures


def scan(sources: Sequence[str | Path]) -> list[Path]:
    """Finds the pictures of folders (at any depth), picture files and .txt or .csv lists.

    In folders a file is taken by its extension, or by its content if that is JPEG, PNG, GIF or
    WebP. Hidden files are ignored; linked folders are entered once; folders without permission are
    returned, so that reading them reports the reason. A list has one path a line, or the column
    `path` (else its first column); relative paths are resolved from the list's folder, or else from
    the current one. Listed files may be missing, which reading them reports later.

    Returns:
        Absolute paths, sorted and distinct.

    Raises:
        UsageError: no source is given, one is missing, or one has no picture.
    """
    if not sources:
        raise UsageError("no pictures given; name a folder, a picture or a .txt/.csv list of paths")
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


def begins_like_picture(path: str | Path) -> bool:
    """Whether a file begins like JPEG, PNG, GIF or WebP, whatever its name."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            return False
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_BEGINNINGS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _names(source: str | Path) -> Iterable[str]:
    path = Path(os.path.abspath(source))
    if os.path.isdir(path):
        return pictures_below(path)
    if not os.path.exists(path):
        raise UsageError(f"no folder or file {source}; give one that exists")
    return _listed(path) if path.suffix.lower() in (".txt", ".csv") else [str(path)]


def pictures_below(folder: Path) -> Iterator[str]:
    """Paths of the pictures in a folder, as `scan` finds them, unsorted."""
    seen: set[tuple[int, int]] = set()
    closed: list[str] = []

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed since its parent was listed
            closed.append(str(error.filename))

    for base, folders, names in os.walk(folder, followlinks=True, onerror=note):
        if _seen_before(base, seen):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(base, name)
            if not name.startswith(".") and _is_picture(path):
                yield path
    yield from closed


def _seen_before(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was visited, as by a link that leads back, or has vanished."""
    try:
        status = os.stat(folder)
    except OSError:
        return True
    known = (status.st_dev, status.st_ino) in seen
    seen.add((status.st_dev, status.st_ino))
    return known


def _is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS or begins_like_picture(path)


def _listed(path: Path) -> Iterator[str]:
    try:
        lines = _lines(path, table_text(read_limited(path, _LARGEST_LIST)))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot read the list {path}: {error}") from None
    for line in lines:
        found = None if "\0" in line else find_listed(path, line)
        if found is None and not is_utf8(line):
            raise UsageError(f"cannot read the list {path}: not UTF-8; save it as such")
        if "\0" in line:
            raise UsageError(f"the list {path} holds a name with a zero byte: {line[:80]!r}")
        bare = line.strip()
        if found is not None or path.suffix.lower() == ".txt" or not bare.startswith("#"):
            yield found or os.path.abspath(path.parent / bare)


def find_listed(path: Path, name: str, there: Callable[[str], bool] = os.path.exists) -> str | None:
    """A listed file, relative to the list or to the current folder; None if there is none.

    The list may have spaces around its name, its accents may be encoded otherwise, as those of
    names from a Mac often are, and it may have backslashes for slashes, as from Windows.

    Args:
        path: of the list.
        name: in the list.
        there: whether a path is one that is looked for.
    """
    bare = name.strip()
    ways = [bare, bare.replace("\\", "/")]
    forms = (unicodedata.normalize(form, way) for way in ways for form in _FORMS)
    spelled = dict.fromkeys([name, bare, *forms])
    folders = (Path(os.path.abspath(path)).parent, Path.cwd())
    places = (os.path.abspath(folder / one) for one in spelled for folder in folders)
    return next((place for place in places if there(place)), None)


def _lines(path: Path, text: str) -> list[str]:
    """Names in a .txt file, one a line, or in a .csv file, which may contain line breaks."""
    if path.suffix.lower() != ".csv":
        lines = text.replace("\r", "\n").split("\n")
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
    rows = [cells for cells in table if not above_header(cells)]
    told = (n for n, row in enumerate(rows) if not row[0].lstrip().startswith("#"))
    first = next(told, 0)
    header = [cell.strip().lower() for cell in rows[first]] if rows else []
    if "path" not in header:
        return [row[0] for row in rows if row[0].strip()]
    column = header.index("path")
    names = [row[column] for row in rows[first + 1 :] if len(row) > column]
    return [name for name in names if name.strip().lower() not in ("", "path")]  # of joined lists
