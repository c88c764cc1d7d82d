"""The files of a run folder, read once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyssl.config import recipe_values
from tinyssl.console import log
from tinyssl.errors import UsageError
from tinyssl.files import read_limited, sha256
from tinyssl.machine import MACHINE
from tinyssl.reporting.run_schema import Evaluation, Finetuned, Machine, read_part
from tinyssl.weights import WEIGHTS, read_description

_LOOK = {"rankme", "bank_rank", "bank_cosine"}
_LARGEST = 1 << 30  # bytes of a log
_DIGESTED = (WEIGHTS, "recipe.yaml", "classifier.safetensors")


@dataclass(frozen=True)
class RunFacts:
    """The parsed files of a run; missing ones are empty.

    Attributes:
        path: the run folder.
        encoder: content of `encoder.json`, with defaults.
        recipe: the resolved recipe as a dict.
        metrics: lines of `metrics.jsonl`.
        epochs: rows of `results.csv`; None where a value was not measured.
        result: content of `eval.json`.
        finetuned: content of `finetune.json`.
        machine: content of `machine.json`.
        skipped: files that could not be read, with reasons.
        copies: groups of pictures with equal files.
        digests: sha256 of the files that determine the encoder and its use.
    """

    path: Path
    encoder: dict[str, Any]
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    epochs: list[dict[str, float | None]]
    result: dict[str, Any]
    finetuned: dict[str, Any]
    machine: dict[str, Any]
    skipped: list[tuple[str, str]]
    copies: list[list[str]]
    digests: dict[str, str]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.absolute().name

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) wherever `results.csv` has a value of this column."""
        rows = ((row.get("epoch"), row.get(key)) for row in self.epochs)
        return [(epoch, value) for epoch, value in rows if epoch is not None and value is not None]

    @property
    def seconds(self) -> float:
        """Duration of training by the log; 0 if unknown."""
        times = self.curve("time")
        return times[-1][1] if times else float(self.finetuned.get("seconds", 0))

    def last_look(self) -> dict[str, float]:
        """The newest label-free scores; empty if there are none."""
        looks = [line for line in self.metrics if line.keys() >= _LOOK]
        return dict(looks[-1]) if looks else {}


def read_run(run: str | Path) -> RunFacts:
    """Reads a run folder.

    Raises:
        UsageError: no encoder there, no recipe, or a JSON file is damaged.
    """
    path = Path(run)
    digests = {name: sha256(path / name) for name in _DIGESTED if (path / name).is_file()}
    return RunFacts(
        path=path,
        encoder=read_description(path),
        recipe=recipe_values(path / "recipe.yaml"),
        metrics=_lines(path / "metrics.jsonl"),
        epochs=[_numbers(row) for row in _rows(path / "results.csv")],
        result=_scores_of(path / "eval.json", digests.get(WEIGHTS)),
        finetuned=read_part(path / "finetune.json", Finetuned),
        machine=read_part(path / MACHINE, Machine),
        skipped=_pairs(path / "skipped.csv", "path", "reason"),
        copies=_groups(_pairs(path / "duplicates.csv", "group", "path")),
        digests=digests,
    )


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` to value."""
    return {
        f"{section}.{key}": value
        for section, values in recipe.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }


def _scores_of(path: Path, weights: str | None) -> dict[str, Any]:
    """The result of `tinyssl eval`; empty if the weights have changed since."""
    result = read_part(path, Evaluation)
    if result.get("weights", weights) == weights:
        return result
    log.warning(f"{path} is of weights that the run had earlier, and left out: judge it again")
    return {}


def _lines(path: Path) -> list[dict[str, float]]:
    """Complete lines of numbers; a crash may have truncated the last one."""
    return [line for text in _text(path).splitlines() if (line := _figures(text))]


def _figures(line: str) -> dict[str, float]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(v, int | float) for v in found.values())
    return found if whole else {}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it") from None


def _pairs(path: Path, one: str, other: str) -> list[tuple[str, str]]:
    """Two columns of a CSV, from the rows that have both."""
    return [(row[one], row[other]) for row in _rows(path) if row.get(one) and row.get(other)]


def _text(path: Path) -> str:
    """The text of a file; empty if there is none."""
    if not path.is_file():
        return ""
    try:
        return read_limited(path, _LARGEST).decode("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it") from None


def _numbers(row: Mapping[str, str]) -> dict[str, float | None]:
    return {key: _number(value) for key, value in row.items() if key is not None}


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _groups(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for group, path in pairs:
        groups.setdefault(group, []).append(path)
    return list(groups.values())
