"""Checkpoints: all that a run needs to continue, in one file that is written atomically."""

from pathlib import Path
from typing import IO, Any

import torch

from tinyssl.errors import UsageError
from tinyssl.files import atomic
from tinyssl.tensor_file import read_tensors

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) with the format version.

    Raises:
        JobError: the file cannot be written; an older checkpoint at `path` stays as it was.
    """
    with atomic(path, _bytes_of(state)) as file:
        writer = _Writer(file)
        try:
            torch.save({"format": FORMAT, **state}, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise


class _Writer:
    """Keeps the error of a full disk, which torch's writer turns into one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _bytes_of(state: object) -> int:
    """Size of all tensors in nested dicts and lists, which is nearly all of the file."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(_bytes_of, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(_bytes_of, state))
    return 0


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU; never runs code that the file may contain.

    Raises:
        UsageError: missing, damaged, not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; start the run without --resume")
    try:
        state = read_tensors(path)
    except UsageError as error:
        raise UsageError(
            f"{error}; begin again with --overwrite, or put a copy of it back"
        ) from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise UsageError(
            f"{path} has checkpoint format {found}, this tinyssl reads {FORMAT}; "
            "resume with the version that wrote it, or start anew with --overwrite"
        )
    return dict(state)
