"""Files that are either whole or not there."""

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tinyssl.errors import JobError, UsageError

_NUMBERS = re.compile(r"\[\n([^\[\]{}\"]+)\n *\]")  # no string of JSON holds a line's end


@contextmanager
def atomic(path: Path, needs: int = 0) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it there once it is whole on the disk.

    Whatever goes wrong inside, `path` keeps what it held and the temporary file is removed.

    Args:
        path: of the file.
        needs: bytes that will be written, if that is known.

    Raises:
        JobError: the file cannot be written (no space, no permission); names the path, and the
            bytes needed where space is what lacks. Or a device is there.
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
    """Why something was not written, and how many bytes it needs where the disk is full."""
    told = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not needs:
        return told
    return f"{told}; it needs {needs:,} bytes"


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Removes what `atomic` left of these files when its process was killed.

    Only where no other process can be writing them.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            name = path.name[1:].rsplit(".", 2)[0]
            if path.name.startswith(".") and path.suffix == ".tmp" and name in names:
                path.unlink(missing_ok=True)


def _position(file: IO[bytes]) -> int:
    """How far writing came; what is still in the buffer counts, since it was to be written."""
    try:
        return file.tell()
    except (OSError, ValueError):
        return 0


def read_limited(path: Path, limit: int) -> bytes:
    """A file's bytes, if it has no more than `limit`: a stranger's may have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or a pipe among files, which one would wait for.
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
    """What a JSON file holds, if it has no more than `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, too large or nested too deeply.
    """
    try:
        return json.loads(read_limited(path, limit).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any) -> str:
    """As indented JSON with each list of plain numbers on one line.

    A matrix would else have a line for each cell, blanks for the most part.
    """
    text = json.dumps(value, indent=1)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def in_home(path: str | Path) -> Path:
    """The path with `~` as the user's folder, which no shell puts in after `=` or in a YAML file.

    A name that only begins so, `~backup`, stays what it is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def with_name(path: str | Path) -> Path:
    """The path; absolute where its last part names nothing, as in `.` and `..`."""
    named = Path(path).name not in ("", "..")
    return Path(path) if named else Path(os.path.abspath(path))


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically; file names of other encodings keep their bytes.

    Raises:
        JobError: as `atomic` does.
    """
    data = text.encode("utf-8", "surrogateescape")
    with atomic(path, len(data)) as file:
        file.write(data)


def writable(target: Path, ending: str = "", inputs: Iterable[str | Path] = ()) -> Path:
    """The path of a file that is to be written, or replaced.

    Args:
        target: of the file.
        ending: such as `.json`: of what may be replaced.
        inputs: files that are read and must stay.

    Raises:
        UsageError: it is a folder, a device or an input, no folder that can be written to is there
            to hold it, or a file of another ending is there.
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


def refuse_input(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UsageError if what is to be written would take the place of something that is read."""
    if target.exists() and any(os.path.exists(p) and target.samefile(p) for p in inputs):
        raise UsageError(f"{target} is read here and would be lost; name another file")


def refuse_unmarked(path: Path, mark: bytes) -> Path:
    """The path of a page or a picture that is to be written, or replaced.

    Raises:
        UsageError: a file is there whose first 1,024 bytes do not hold the mark of ours.
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
    """Raises UsageError where a file is there that is no CSV of just the columns of one of these.

    One that has more of them is a list of ours in which someone has made notes.
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


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a CSV, lines ending as RFC 4180 has it."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def is_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8: names of files hold odd bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
