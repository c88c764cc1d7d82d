"""The folder that a run leaves: which file is where, and how the logs are written."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyssl.errors import UsageError
from tinyssl.files import write_text

_OURS = (
    "recipe.yaml", "metrics.jsonl", "results.csv", "train.log", "skipped.csv", "duplicates.csv",
    "encoder.safetensors", "encoder.json", "eval.json", "checkpoints",
    "classifier.safetensors", "labels.csv", "finetune.json",
    "machine.json", "report.html", "report_features.npz", "tensorboard",
)  # fmt: skip

Value = float | int | str | None


class RunFolder:
    """Paths and logs of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.csv"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.skipped = self.path / "skipped.csv"
        self.duplicates = self.path / "duplicates.csv"
        self._log = _LateFile(self.path / "train.log")

    def refuse_if_used(self, *, resumable: bool = True) -> None:
        """Raises UsageError when the path exists and is anything but an empty folder."""
        resume = "go on with --resume, " if resumable else ""
        if self.path.is_file():
            raise UsageError(f"--out {self.path} is a file; name a new folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(
                f"--out {self.path} is not empty; {resume}replace the run with "
                "--overwrite, or name another folder"
            )

    def clear(self) -> None:
        """Removes an earlier run's files and nothing else that may lie in the folder."""
        for name in _OURS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def create(self) -> None:
        """Makes the folder; raises UsageError when that is not allowed there."""
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.path} cannot be made: {error.strerror}") from error

    def log_metrics(self, values: Mapping[str, Any]) -> None:
        """Appends one object to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def log_epoch(self, row: Mapping[str, Value], columns: list[str]) -> None:
        """Appends one row to `results.csv`; values that were not measured stay empty."""
        new = not self.results.exists()
        with self.results.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({key: _short(value) for key, value in row.items()})

    def forget_after(self, step: int, epoch: int) -> None:
        """Drops log lines written after the checkpoint that a run goes on from.

        Args:
            step: finished steps in the checkpoint.
            epoch: finished epochs in the checkpoint.
        """
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_whole(line) and json.loads(line)["step"] <= step]
            write_text(self.metrics, "".join(line + "\n" for line in kept))
        if self.results.exists():
            lines = self.results.read_text(encoding="utf-8").splitlines()
            kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= epoch]
            write_text(self.results, "".join(line + "\n" for line in kept))

    @contextmanager
    def log_to_file(self) -> Iterator[None]:
        """Appends what is logged to `train.log`; lines from before `begin_log` are kept for it."""
        logger = logging.getLogger("tinyssl")
        logger.addHandler(self._log)
        try:
            yield
        finally:
            logger.removeHandler(self._log)

    def begin_log(self) -> None:
        """The run is accepted and its folder there: from now on lines are written."""
        self._log.begin()


class _LateFile(logging.Handler):
    """Keeps lines until it is told to begin, so that a refused run leaves no file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.waiting: list[str] | None = []
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def begin(self) -> None:
        lines, self.waiting = self.waiting or [], None
        self._append(lines)

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record) + "\n"
        if self.waiting is None:
            self._append([line])
        else:
            self.waiting.append(line)

    def _append(self, lines: list[str]) -> None:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)


def _short(value: Value) -> Value:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _is_whole(line: str) -> bool:
    """A line cut off by a crash is not JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
