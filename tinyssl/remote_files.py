"""Files on this machine or behind an address such as s3://, through fsspec."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tinyssl.errors import JobError, UsageError
from tinyssl.files import atomic

_CHANGED = ("ETag", "mtime", "LastModified", "created")  # as the storages call it


class Found(NamedTuple):
    """A file and what changes when it does: its size, and its time or tag."""

    url: str
    stamp: str


def is_remote(name: str) -> bool:
    """Whether a name is an address, such as s3://bucket/folder, and not a path."""
    return "://" in name


def find_below(url: str, endings: frozenset[str]) -> list[Found]:
    """Files below a folder, or the one file, with one of the endings; hidden ones are passed over.

    Raises:
        UsageError: nothing can be read there.
    """
    try:
        system, root = _system(url)
        entries = system.find(root, detail=True)
    except Exception as error:  # every storage has errors of its own
        raise UsageError(f"cannot list {url}: {_first(error)}") from None
    found = []
    for path, entry in entries.items():
        below = posixpath.relpath(path, root).split("/")
        hidden = any(part.startswith(".") and part != "." for part in below)
        if not hidden and posixpath.splitext(path)[1].lower() in endings:
            changed = [entry[key] for key in _CHANGED if key in entry][:1]
            found.append(Found(system.unstrip_protocol(path), f"{entry.get('size')} {changed}"))
    return sorted(found)


def read(url: str) -> bytes:
    """The whole content.

    Raises:
        OSError: a file on this machine cannot be read, or a storage has none or does not give it.
        JobError: a storage fails otherwise, which may pass.
    """
    try:
        system, path = _system(url)
        data: bytes = system.cat_file(path)
        return data
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # every storage has errors of its own
        if not is_remote(url):
            raise
        raise JobError(f"cannot read {url}: {_first(error)}") from error


def open_file(url: str) -> IO[bytes]:
    """A file to read parts of."""
    system, path = _system(url)
    file: IO[bytes] = system.open(path, "rb")
    return file


def write(url: str, data: bytes) -> None:
    """Writes a whole file, and its folder on this machine; who looks sees the old one or none.

    Raises:
        JobError: it cannot be written.
    """
    try:
        system, path = _system(url)
        if isinstance(system, LocalFileSystem):  # of file:// too
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic(Path(path)) as file:
                file.write(data)
        else:
            system.pipe_file(path, data)  # object stores show a file when it is whole
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"cannot write {url}: {_first(error)}") from error


def remove(url: str) -> None:
    """Removes a file."""
    system, path = _system(url)
    system.rm_file(path)


def names_in(url: str) -> list[str]:
    """Names of what is right in a folder; none where there is no folder.

    Raises:
        UsageError: nothing can be read there.
    """
    try:
        system, path = _system(url)
        return sorted(posixpath.basename(name) for name in system.ls(path, detail=False))
    except FileNotFoundError:
        return []
    except Exception as error:
        raise UsageError(f"cannot list {url}: {_first(error)}") from None


def join(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def _system(url: str) -> tuple[Any, str]:
    if not is_remote(url):  # where "::" has no meaning
        return fsspec.filesystem("file"), os.path.abspath(url)
    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
