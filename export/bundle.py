"""The bundle, the folder that goes to the device: written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyssl.console import log
from tinyssl.errors import JobError, UsageError
from tinyssl.files import read_json, reason

from .runtime import ENGINE, ENGINE_FACTS, FORMAT, GOLDEN, MANIFEST

RUNTIME, BUILD_ENGINE = "runtime.py", "build_engine.py"
_CACHE = "__pycache__"  # appears when the bundle's programs are imported
_MADE_THERE = (ENGINE, ENGINE_FACTS, "benchmark.json", "benchmark.csv", _CACHE)


def refuse_if_used(out: Path, overwrite: bool) -> None:
    """Raises UsageError if `out` is not empty, or with `overwrite` if it is not just a bundle.

    Also if it cannot be made. The bundle may be of any version, and contain its engine and the
    results of its benchmark.
    """
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: a bundle takes its folder's place; give the folder's name")
    if os.path.lexists(out) and not out.is_dir():
        kind = "file" if out.is_file() else "link to no folder" if out.is_symlink() else "device"
        raise UsageError(f"--out {out} is a {kind}; name a new folder")
    above = next(place for place in out.absolute().parents if os.path.lexists(place))
    if not above.is_dir():
        raise UsageError(f"--out {out}: {above} is no folder; name another one")
    if not os.access(above, os.W_OK):
        raise UsageError(f"--out {out}: nothing can be written to {above}; name another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"--out {out} is not empty; name another folder, or give --overwrite")
    if not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out} holds no bundle ({MANIFEST}); --overwrite replaces only one")
    ours = _written(out)
    if not ours:
        raise UsageError(
            f"--out {out} holds no bundle: its {MANIFEST} is damaged or none that tinyssl wrote; "
            "name another folder"
        )
    strange = sorted(path.name for path in out.iterdir() if not _is_ours(path.name, ours))
    if strange:
        raise UsageError(
            f"--out {out} holds {strange[0]}, which no export wrote; move it, or name another "
            "folder"
        )


def _written(out: Path) -> set[str]:
    """Names that belong to the bundle in a folder; empty if tinyssl wrote no manifest there."""
    try:
        manifest = read_json(out / MANIFEST)
    except (OSError, ValueError):
        return set()
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or GOLDEN not in listed:
        return set()
    told = all(isinstance(facts, dict) and "sha256" in facts for facts in listed.values())
    known = told and type(manifest.get("format")) is int
    return {MANIFEST, *_MADE_THERE, *listed} if known else set()


def _is_ours(name: str, ours: Collection[str]) -> bool:
    """Whether a file is the bundle's, or a temporary one that a killed process left."""
    left = name.startswith(".") and name.endswith(".tmp")
    return name in ours or (left and any(name.startswith(f".{known}.") for known in ours))


def write_bundle(
    out: Path,
    models: Mapping[str, bytes],
    golden: bytes,
    manifest: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    programs: Sequence[str] = (RUNTIME,),
    overwrite: bool = False,
) -> None:
    """Writes models, golden pictures, programs and the manifest to a new folder.

    Args:
        out: replaced as a whole once the new folder is complete. Of a link the folder that it
            points to is replaced.
        models: content by file name.
        golden: content of `golden.npz`.
        manifest: entries besides the list of files.
        facts: further entries of some files, by name.
        programs: files of this package to include.
        overwrite: replace an existing bundle, if the folder has nothing else.

    Raises:
        UsageError: `out` is no longer free.
        JobError: it cannot be written; `out` is unchanged.
    """
    ours = {name: files("tinyssl.export").joinpath(name).read_bytes() for name in programs}
    contents = {**models, GOLDEN: golden, **ours}
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        | dict(facts.get(name, {}))
        for name, data in contents.items()
    }
    told = json.dumps({"format": FORMAT, **manifest, "files": listed}, indent=1) + "\n"
    everything = {**contents, MANIFEST: told.encode()}
    out = Path(os.path.realpath(out)) if out.is_dir() else out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            for name, data in everything.items():
                _write(temporary / name, data)
            temporary.chmod(0o755)
            refuse_if_used(out, overwrite)
            _swap(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        needs = sum(map(len, everything.values()))
        raise JobError(f"cannot write {out}: {reason(error, needs)}") from error


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(new: Path, out: Path) -> None:
    """Moves the new folder into place; until then the old one is kept whole beside it."""
    aside = new.with_name(f"{new.name}.old")
    try:
        if out.exists():
            out.rename(aside)
        new.rename(out)
    except BaseException:  # Ctrl-C too
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise
    if aside.exists():
        _remove(aside)


def _remove(bundle: Path) -> None:
    """Removes a bundle's own files, and its folder unless something else was added to it."""
    ours = _written(bundle)
    # The manifest last: without it the remaining files are not recognized as a bundle's.
    with suppress(OSError):
        for path in sorted(bundle.iterdir(), key=lambda path: path.name == MANIFEST):
            if path.name in ours and path.name == _CACHE:
                shutil.rmtree(path, ignore_errors=True)
            elif _is_ours(path.name, ours):
                path.unlink()
        bundle.rmdir()
        return
    log.warning(f"{bundle} is the bundle that was replaced, and could not be removed")
