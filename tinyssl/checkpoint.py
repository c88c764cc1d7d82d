"""A checkpoint holds everything that a run needs to go on, in one file, written atomically."""

import pickle
from pathlib import Path
from typing import Any

import torch

from tinyssl.errors import UsageError
from tinyssl.files import atomic

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) with the format's number.

    Raises:
        JobError: the file cannot be written; an older checkpoint at `path` stays as it was.
    """
    with atomic(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; never runs code that the file may hold.

    Raises:
        UsageError: missing, damaged, not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; start the run without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged or not a tinyssl checkpoint: {reason}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise UsageError(
            f"{path} has checkpoint format {found}, this tinyssl reads {FORMAT}; "
            "resume with the version that wrote it, or start anew with --overwrite"
        )
    return dict(state)
