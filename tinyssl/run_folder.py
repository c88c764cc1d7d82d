"""The folder of a run: its files, locking, and logs."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

import yaml

from tinyssl.errors import JobError, UsageError, one_line
from tinyssl.files import (
    in_home,
    read_limited,
    reason,
    refuse_unmakeable,
    remove_leftovers,
    typed,
    write_text,
)
from tinyssl.lines import log
from tinyssl.locks import InUse, locked
from tinyssl.plain_yaml import parse_yaml

HELD_OUT = "held_out.csv"  # the test pictures that were not pretrained on
_TRACES = ("classifier.safetensors", "encoder.safetensors", "train.log")
_OURS = (
    "metrics.jsonl", "results.csv", "skipped.csv", "duplicates.csv", HELD_OUT, "encoder.json",
    "eval.json", "eval_split.csv", "label_curve.png", "checkpoints", "finetune.json",
    "machine.json", "report.html", "report_features.npz", "tensorboard", "wandb",
    *_TRACES, "recipe.yaml",  # removed last, since they mark the folder of a run
)  # fmt: skip
# Files that exist before any trace.
_FIRST = {"recipe.yaml", "checkpoints", "skipped.csv", "duplicates.csv", HELD_OUT}
_SECTIONS = (
    {"data", "augment", "encoder", "head", "bank", "loss", "optim", "run"},
    {"task", "data", "classifier", "network", "augment", "unlabeled", "run"},
)

LABELS, LABELS_HEADER = "labels.csv", ("path", "label", "digest")  # of a fine-tuned run

_LINE = 400  # bytes of a log line, approximately
Value = float | int | str | None


def resume_command(folder: Path) -> str:
    """The shell command that resumes a run."""
    return f"tinyssl pretrain --resume --out {typed(folder)}"


class RunFolder:
    """Paths and logs of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = in_home(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.csv"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.skipped = self.path / "skipped.csv"
        self.duplicates = self.path / "duplicates.csv"
        self._log = _LateFile(self.path / "train.log")

    def refuse_if_used(self, *, resumable: bool = True) -> None:
        """Raises UsageError if the path exists and is not an empty folder, or cannot be made."""
        resume = "go on with --resume, " if resumable else ""
        if self.path.is_file():
            raise UsageError(f"--out {self.path} is a file; name a new folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(
                f"--out {self.path} is not empty; {resume}replace the run with "
                "--overwrite, or name another folder"
            )
        refuse_unmakeable(self.path)

    def refuse_to_replace(self) -> None:
        """Raises UsageError where `clear` would remove files of the same names that no run wrote.

        A recipe counts as a run's only in the form in which runs write it, and without traces of a
        run only beside files that exist before it starts.
        """
        there = [name for name in reversed(_OURS) if (self.path / name).exists()]
        traced = not set(there).isdisjoint(_TRACES)
        saved = _is_saved(self.recipe, changed=traced)
        known = saved and (set(there) <= _FIRST or traced)
        ours = set(there) if known else {"checkpoints", *(_FIRST if saved else ())}
        odd = [name for name in there if name not in ours]
        if self.checkpoint.parent.is_dir():
            beside = (path.name for path in self.checkpoint.parent.iterdir())
            odd += [f"checkpoints/{n}" for n in beside if self.checkpoint.name not in n]
        if odd:
            raise UsageError(
                f"--out {self.path} holds {odd[0]}, which no run of tinyssl left there; move it, "
                "or name another folder"
            )

    def refuse_to_lose(self, inputs: Iterable[str | Path]) -> None:
        """Raises UsageError where `clear` would remove an input."""
        here = Path(os.path.realpath(self.path))  # of links only the link itself is removed
        gone = {here / name for name in self._own()}
        for given in inputs:
            real = Path(os.path.realpath(given))
            if not gone.isdisjoint((real, *real.parents)):
                raise UsageError(
                    f"{given} is read here and would be lost with the run in --out; name another "
                    "--out, or copy it elsewhere"
                )

    def clear(self) -> None:
        """Removes the files of an earlier run, and no others.

        A list of labels is removed only if its header is that of a run.
        """
        for name in self._own():
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _own(self) -> Sequence[str]:
        return (*_OURS, LABELS) if self.holds_own_labels() else _OURS

    def holds_own_labels(self) -> bool:
        """Whether there is a list of labels that a run wrote."""
        try:
            with (self.path / LABELS).open(encoding="utf-8") as file:
                return file.readline().strip() == ",".join(LABELS_HEADER)
        except (OSError, ValueError):
            return False

    def refuse_to_lose_labels(self) -> None:
        """Raises UsageError where a list of labels that no run wrote would be replaced."""
        labels = self.path / LABELS
        if labels.exists() and not self.holds_own_labels():
            raise UsageError(f"{labels} is none of tinyssl's; move it, or name another --out")

    def create(self, held: ExitStack, overwrite: bool, *, resumable: bool = True) -> None:
        """Makes the folder, or clears it of an earlier run, and locks it for this process.

        Raises:
            UsageError: the folder may not be used, or is in use by another run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(self.hold())
            if overwrite:
                self.refuse_to_replace()
                self.clear()
            else:
                self.refuse_if_used(resumable=resumable)
            if resumable:
                self.checkpoint.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.path} cannot be made: {error.strerror}") from error

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Locks the folder; raises UsageError if another process has it locked."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
            except InUse:
                raise UsageError(
                    f"--out {self.path} is in use by another tinyssl; wait for it, or name "
                    "another folder"
                ) from None
            except JobError as error:
                log.warning(f"{error}; start no second run there")
            for folder in (self.path, self.checkpoint.parent):
                remove_leftovers(folder, {*_OURS, LABELS, self.checkpoint.name})
            yield

    def log_metrics(self, values: Mapping[str, Any]) -> None:
        """Appends one object to `metrics.jsonl`."""
        with _told(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def log_epoch(self, row: Mapping[str, Value], columns: Sequence[str]) -> None:
        """Appends one row to `results.csv`; missing values stay empty."""
        new = not self.results.exists() or self.results.stat().st_size == 0
        with _told(self.results), self.results.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({key: _short(value) for key, value in row.items()})

    def forget_after(self, step: int, epoch: int, columns: Sequence[str]) -> None:
        """Drops log lines that were written after the checkpoint that a run resumes from.

        Args:
            step: finished steps in the checkpoint.
            epoch: finished epochs in the checkpoint.
            columns: of `results.csv`, which is removed if its header is not these.
        """
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step(line) <= step]
            write_text(self.metrics, "".join(line + "\n" for line in kept))
        if self.results.exists():
            text = self.results.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines(keepends=True)
            header = ",".join(columns) + "\n"
            if lines[:1] != [header]:
                self.results.unlink()
                return
            kept = [line for line in lines[1:] if _epoch(line, header) <= epoch]
            write_text(self.results, "".join([header, *kept]))

    @contextmanager
    def log_to_file(self) -> Iterator[None]:
        """Appends log lines to `train.log`; those before `begin_log` are buffered until then."""
        log.addHandler(self._log)
        try:
            yield
        finally:
            log.removeHandler(self._log)

    def begin_log(self) -> None:
        """Writes the buffered lines, and later ones at once; the folder must exist."""
        self._log.begin()


class _LateFile(logging.Handler):
    """Buffers lines of its thread until told to begin, so that a refused run leaves no file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.thread = path, get_ident()
        self.waiting: list[str] | None = []
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def begin(self) -> None:
        lines, self.waiting = self.waiting or [], None
        with _told(self.path):
            self._append(lines)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == self.thread  # others may have runs of their own

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(self.format(record)) + "\n"
        if self.waiting is None:
            with suppress(OSError):  # a full disk is reported for files that matter
                self._append([line])
        else:
            self.waiting.append(line)

    def _append(self, lines: list[str]) -> None:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)


def _is_saved(recipe: Path, *, changed: bool) -> bool:
    """Whether a run wrote the recipe: with all sections, and in the exact form that runs write.

    Args:
        recipe: the file.
        changed: allow another form, as of an edited file.
    """
    try:
        text = read_limited(recipe, 1 << 24).decode()
        found = parse_yaml(text)
    except (OSError, ValueError):
        return False
    whole = isinstance(found, dict) and any(set(found) >= wanted for wanted in _SECTIONS)
    return whole and (changed or bool(yaml.safe_dump(found, sort_keys=False) == text))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobError(f"cannot write {path}: {reason(error, _LINE)}") from error


def _epoch(line: str, header: str) -> float:
    """The epoch of a row of results; infinite for a truncated row."""
    whole = line.endswith("\n") and line.count(",") == header.count(",")
    first = line.split(",")[0]
    return int(first) if whole and first.isdecimal() else float("inf")


def _short(value: Value) -> Value:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _step(line: str) -> float:
    """The step of a line of metrics; infinite for a truncated line, which is not JSON."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
