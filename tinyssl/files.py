"""Files that are either whole or not there."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tinyssl.errors import JobError


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it there once it is whole on the disk.

    Whatever goes wrong inside, `path` keeps what it held and the temporary file is removed.

    Raises:
        JobError: the file cannot be written (no space, no permission); names the path.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_limited(path: Path, limit: int) -> bytes:
    """A file's bytes, if it has no more than `limit`: a stranger's may have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger.
    """
    with path.open("rb") as file:
        known = os.fstat(file.fileno()).st_size  # 0 for pipes
        data = file.read(limit + 1) if known <= limit else b""
    if known > limit or len(data) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return data


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


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically; file names of other encodings keep their bytes.

    Raises:
        JobError: as `atomic` does.
    """
    with atomic(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
