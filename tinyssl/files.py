"""Atomic writing, limited reading, and checks of paths."""

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from tinyssl.errors import JobError, UsageError

One = TypeVar("One", bound=str | Path)
_PLAIN_ON_WINDOWS = re.compile(r"[\w\\/:.=+-]+")
_NUMBERS = re.compile(r"\[\n([^\[\]{}\"]+)\n *\]")  # JSON strings contain no line breaks
_SEPARATOR = re.compile(r"sep=([,;\t]?)", re.IGNORECASE)  # a line that Excel reads and writes


@contextmanager
def atomic(path: Path, needs: int = 0) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it to `path` once it is fully on disk.

    If anything fails, `path` keeps its content and the temporary file is removed.

    Args:
        path: of the file.
        needs: bytes that will be written, if known.

    Raises:
        JobError: the file cannot be written (no space, no permission), or `path` is a device;
            names the path, and the bytes needed where the disk is full.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise JobError(f"cannot write {path}: it is no plain file")
    temporary, written = None, 0
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                yield file
                file.flush()
            finally:
                written = _position(file)
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise JobError(f"cannot write {path}: {reason(error, max(needs, written))}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def reason(error: OSError, needs: int) -> str:
    """Why writing failed, with the bytes needed where the disk is full."""
    told = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not needs:
        return told
    return f"{told}; it needs {needs:,} bytes"


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Removes temporary files that `atomic` left when its process was killed.

    Only for files that no other process can be writing.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            name = path.name[1:].rsplit(".", 2)[0]
            if path.name.startswith(".") and path.suffix == ".tmp" and name in names:
                path.unlink(missing_ok=True)


def _position(file: IO[bytes]) -> int:
    """Bytes written so far, including what is still buffered."""
    try:
        return file.tell()
    except (OSError, ValueError):
        return 0


def read_limited(path: Path, limit: int) -> bytes:
    """A file's bytes, if it has no more than `limit`; untrusted files may be endless.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or a named pipe, which would block.
    """
    if stat.S_ISFIFO(path.stat().st_mode) and path.parts[:2] not in (("/", "dev"), ("/", "proc")):
        raise ValueError("a pipe, not a file")
    with path.open("rb") as file:
        known = os.fstat(file.fileno()).st_size  # 0 for pipes
        data = file.read(limit + 1) if known <= limit else b""
    if known > limit or len(data) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return data


LARGEST_RESULT = 1 << 29  # bytes of `eval.json`: 100 MB with 1,000 classes and six encoders


def read_json(path: Path, limit: int = 1 << 26) -> Any:
    """The content of a JSON file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, too large or nested too deeply.
    """
    try:
        return json.loads(read_limited(path, limit).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any) -> str:
    """Indented JSON with each list of plain numbers on one line.

    Otherwise a matrix would take a line for each cell, most of it indentation.
    """
    text = json.dumps(value, indent=1)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def in_home(path: str | Path) -> Path:
    """The path with `~` expanded, which shells do not do after `=` nor YAML at all.

    A name such as `~backup` is not changed.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def with_name(path: str | Path) -> Path:
    """The path; made absolute where its last part is not a name, as in `.` and `..`."""
    named = Path(path).name not in ("", "..")
    return Path(path) if named else Path(os.path.abspath(path))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically; file names in other encodings keep their bytes.

    Raises:
        JobError: as `atomic` does.
    """
    data = text.encode("utf-8", "surrogateescape")
    with atomic(path, len(data)) as file:
        file.write(data)


def writable(target: Path, ending: str = "", inputs: Iterable[str | Path] = ()) -> Path:
    """Checks that a file may be written or replaced, and returns its path.

    Args:
        target: of the file.
        ending: such as `.json`: only files with this ending may be replaced.
        inputs: files that are read and must not be replaced.

    Raises:
        UsageError: it is a folder, a device or an input, its folder does not exist or cannot be
            written to, or a file with another ending is there.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{target}: no file can be written to that folder; name another one")
    if not target.exists():
        return target
    if not target.is_file():
        raise UsageError(f"{target} is no plain file; name one")
    refuse_input(target, inputs)
    if not target.name.lower().endswith(ending):
        raise UsageError(f"{target} is there and does not end in {ending}; name another file")
    return target


def refuse_unmakeable(folder: Path) -> None:
    """Raises UsageError if a folder for --out cannot be made, or nothing can be written to it."""
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if os.path.exists(path))
    if not there.is_dir():
        raise UsageError(f"--out {folder}: {there} is no folder; name another one")
    if not os.access(there, os.W_OK):
        raise UsageError(f"--out {folder}: nothing can be written to {there}; name another folder")


def refuse_input(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UsageError if an output would replace an input."""
    if target.exists() and any(os.path.exists(p) and target.samefile(p) for p in inputs):
        raise UsageError(f"{target} is read here and would be lost; name another file")


def refuse_unmarked(path: Path, mark: bytes) -> Path:
    """Checks that a page or a picture may be written or replaced, and returns its path.

    Raises:
        UsageError: a file is there without `mark` in its first 1,024 bytes.
    """
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if mark not in file.read(1024):
                raise UsageError(
                    f"{path} is there, was not made by tinyssl, and would be lost; move it, or "
                    "name another file"
                )
    return path


def refuse_other_table(path: Path, *tables: Sequence[str]) -> None:
    """Raises UsageError if a file is there that is no CSV with the columns of one of `tables`.

    A list with further columns may contain a user's notes.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        first = file.readline(1 << 16).strip().removeprefix(codecs.BOM_UTF8)  # of a spreadsheet
    ours = [",".join(columns) for columns in tables]
    if first not in map(str.encode, ours):
        raise UsageError(
            f"{path} is there and would be lost: its first line is not {' or '.join(ours)}; "
            "move it, or name another file"
        )


def as_list(given: One | Sequence[One]) -> list[One]:
    """A single path or text as a list, several as they are."""
    return [given] if isinstance(given, str | Path) else list(given)


def typed(text: object, windows: bool = os.name == "nt") -> str:
    """A path or a setting as a shell takes it; those of Windows do not know single quotes."""
    plain = str(text)
    if not windows:
        return shlex.quote(plain)
    return plain if _PLAIN_ON_WINDOWS.fullmatch(plain) else f'"{plain}"'


def is_remote(name: str) -> bool:
    """Whether a name is an address, such as s3://bucket/folder, rather than a path."""
    return "://" in name


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a CSV, with line ends as in RFC 4180."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def table_text(data: bytes) -> str:
    """Text of a table or list: UTF-8, or UTF-16 with a byte-order mark, as Excel writes it.

    Bytes that are not UTF-8 become surrogates, as in names of files.

    Raises:
        UnicodeDecodeError: a damaged UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig", "surrogateescape")


def above_header(cells: Sequence[str]) -> bool:
    """Whether a row is empty or only names the delimiter, and so cannot be a table's header."""
    told = "".join(cells).strip()
    return not told or _SEPARATOR.fullmatch(told) is not None


def delimiter_of(text: str) -> str:
    """What is between the cells of a table with a column `path`: a comma if nothing else fits.

    Spreadsheets of countries with decimal commas write semicolons. A first line such as `sep=;`
    decides.
    """
    lines = (line.strip(' "') for line in text[: 1 << 16].splitlines())
    first = next((line for line in lines if line.strip(' ,;\t"')[:1] not in ("", "#")), "").lower()
    if (told := _SEPARATOR.fullmatch(first)) and told[1]:
        return told[1]
    fits = (c for c in ",;\t" if "path" in [cell.strip(' "') for cell in first.split(c)])
    return next(fits, ",")


def is_utf8(text: str) -> bool:
    """Whether text can be encoded as UTF-8; file names hold other bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
