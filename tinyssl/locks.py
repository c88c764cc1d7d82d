"""Locks of folders between processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyssl.errors import JobError

if sys.platform != "win32":
    import fcntl


class InUse(Exception):
    """Another process holds the folder."""


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Locks a folder for this process; the system releases it however the process ends.

    The folder itself is locked, so that no lock file is left behind. On Windows, which does not
    support this, nothing is locked.

    Args:
        folder: exists.
        waiting: called once before waiting for another process; without it, there is no waiting.

    Raises:
        InUse: another process holds it, and `waiting` is None.
        JobError: the file system does not support locks.
        FileNotFoundError: the folder is gone, or was removed while this waited.
    """
    if sys.platform == "win32":
        yield
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise InUse from None
            waiting()
            fcntl.flock(number, fcntl.LOCK_EX)
        except OSError as error:
            raise JobError(
                f"cannot lock {folder}: {error.strerror or error}; use a folder on a local disk"
            ) from None
        if os.fstat(number).st_ino != os.stat(folder).st_ino:
            raise FileNotFoundError(f"{folder} is another folder now")
        yield
    finally:
        with suppress(OSError):
            os.close(number)


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder; False where that is unknown."""
    try:
        with locked(folder):
            return False
    except InUse:
        return True
    except (JobError, OSError):
        return False
