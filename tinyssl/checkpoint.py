"""A checkpoint holds everything that a run needs to go on, in one file, written atomically."""

from pathlib import Path
from typing import Any

import torch

from tinyssl.errors import UsageError
from tinyssl.files import atomic
from tinyssl.tensor_file import read_tensors

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
    state = read_tensors(path)
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise UsageError(
            f"{path} has checkpoint format {found}, this tinyssl reads {FORMAT}; "
            "resume with the version that wrote it, or start anew with --overwrite"
        )
    return dict(state)
