"""Files on this machine or behind an address such as s3://, through fsspec."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tinyssl.errors import JobError, UsageError, first_line
from tinyssl.files import atomic, is_remote

_CHANGED = ("ETag", "mtime", "LastModified", "created")  # names in different storages


class Found(NamedTuple):
    """A file and its version: size, and time or tag."""

    url: str
    stamp: str


def find_below(url: str, endings: frozenset[str]) -> list[Found]:
    """Files below a folder, or a single file, with one of the endings; without hidden ones.

    Raises:
        UsageError: the address cannot be listed.
    """
    try:
        system, root = _system(url)
        entries = system.find(root, detail=True)
    except Exception as error:  # every storage has errors of its own
        raise UsageError(f"cannot list {url}: {first_line(error)}") from None
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
        raise JobError(f"cannot read {url}: {first_line(error)}") from error


def open_file(url: str) -> IO[bytes]:
    """Opens a file to read parts of it."""
    system, path = _system(url)
    file: IO[bytes] = system.open(path, "rb")
    return file


def write(url: str, data: bytes) -> None:
    """Writes a file atomically, and makes its folder if it is local.

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
            system.pipe_file(path, data)  # object stores show complete files only
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"cannot write {url}: {first_line(error)}") from error


def remove(url: str) -> None:
    """Removes a file."""
    system, path = _system(url)
    system.rm_file(path)


def names_in(url: str) -> list[str]:
    """Names of the entries of a folder; none if it does not exist.

    Raises:
        UsageError: the folder cannot be listed.
    """
    try:
        system, path = _system(url)
        return sorted(posixpath.basename(name) for name in system.ls(path, detail=False))
    except FileNotFoundError:
        return []
    except Exception as error:
        raise UsageError(f"cannot list {url}: {first_line(error)}") from None


def join(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def _system(url: str) -> tuple[Any, str]:
    if not is_remote(url):  # "::" has no meaning in paths
        return fsspec.filesystem("file"), os.path.abspath(url)
    system, path = fsspec.core.url_to_fs(url)
    return system, path
