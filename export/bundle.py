"""The folder that goes to the device: written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyssl.errors import JobError, UsageError
from tinyssl.files import reason

from .runtime import FORMAT, GOLDEN, MANIFEST

RUNTIME, BUILD_ENGINE = "runtime.py", "build_engine.py"


def refuse_if_used(out: Path, overwrite: bool) -> None:
    """Raises UsageError when `out` holds anything, or with `overwrite` anything but a bundle."""
    if out.is_file():
        raise UsageError(f"--out {out} is a file; name a new folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"--out {out} is not empty; name another folder, or give --overwrite")
    if not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out} holds no bundle ({MANIFEST}); --overwrite replaces only one")


def write_bundle(
    out: Path,
    models: Mapping[str, bytes],
    golden: bytes,
    manifest: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    programs: Sequence[str] = (RUNTIME,),
    overwrite: bool = False,
) -> None:
    """Writes models, golden pictures, programs and the manifest into a new folder.

    Args:
        out: replaced as a whole; what was there is kept until the new one is complete.
        models: content by file name.
        golden: content of `golden.npz`.
        manifest: what is to be said beside the files.
        facts: more to be said of some files, by name.
        programs: files of this package that go along.
        overwrite: replace a bundle that is there.

    Raises:
        UsageError: `out` came into use meanwhile.
        JobError: it cannot be written; `out` is as it was.
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
    """Puts the new folder in its place; the old one is whole beside it until then."""
    aside = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
