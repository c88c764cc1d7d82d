"""`tinyssl predict`: writes the classes of pictures to a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from tinyssl.classifier import Classifier, load_classifier
from tinyssl.console import log, progress
from tinyssl.errors import NothingReadable, UsageError
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.files import as_list, atomic, csv_text, refuse_input, writable
from tinyssl.scanning import scan
from tinyssl.signals import unwound_by_term

_CHUNK = 256


@dataclass(frozen=True)
class Predicted:
    """The result of `predict`.

    Attributes:
        out: the CSV.
        pictures: number of its rows.
        skipped: pictures that could not be read, with reasons.
    """

    out: Path
    pictures: int
    skipped: list[tuple[str, str]]


def predict(
    run: str | Path,
    pictures: str | Path | Sequence[str | Path],
    out: str | Path = "predictions.csv",
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> Predicted:
    """Writes `path,label,probability` and the probability of every class, `p(CLASS)`, as a CSV.

    Pictures are read in chunks, so that their number is not limited by memory. Unreadable ones are
    logged and skipped.

    Args:
        run: a fine-tuned run folder.
        pictures: a folder, a picture, a .txt/.csv list, or several of these.
        out: the CSV; it appears once it is complete.
        device: auto, cpu, cuda or cuda:N.
        overwrite: replace a file at `out`.

    Raises:
        UsageError: no classifier at `run`, no pictures, `out` exists or has no folder.
        JobError: no picture can be read, or the CSV cannot be written.
        Interrupted: SIGTERM or SIGHUP; nothing was written.
    """
    target = writable(Path(out))
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; name another file, or give --overwrite")
    classifier = load_classifier(run)
    if classifier is None:
        raise UsageError(
            f"{run} has no classifier; make one with: tinyssl finetune {run} --labels labels.csv"
        )
    extractor = open_extractor(run, raw=True, device=device)
    sources = as_list(pictures)
    paths = scan(sources)
    refuse_input(target, [*sources, *paths])
    skipped: list[tuple[str, str]] = []
    ended = unwound_by_term("terminated; nothing was written")
    with progress("predicting", len(paths)) as advance, ended, atomic(target) as file:
        _write(file, ["path", "label", "probability", *(f"p({c})" for c in classifier.classes)])
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for row in _rows(chunk, extractor, classifier, skipped):
                _write(file, row)
            advance(len(chunk))
        if len(skipped) == len(paths):
            raise NothingReadable.of(skipped)
    for path, reason in skipped:
        log.warning(f"skipped {path}: {reason}")
    return Predicted(target, len(paths) - len(skipped), skipped)


def _rows(
    paths: Sequence[Path],
    extractor: Extractor,
    classifier: Classifier,
    skipped: list[tuple[str, str]],
) -> Iterator[list[object]]:
    with extractor.reading(), ThreadPoolExecutor() as pool:
        read = list(pool.map(extractor.read, paths))
    found = [(p, r[1]) for p, r in zip(paths, read, strict=True) if not isinstance(r, str)]
    skipped += [(str(p), r) for p, r in zip(paths, read, strict=True) if isinstance(r, str)]
    if not found:
        return
    features = extractor.features(np.stack([picture for _, picture in found]))
    shares = classifier.probabilities(torch.from_numpy(features)).numpy()
    for (path, _), row in zip(found, shares, strict=True):
        best = int(row.argmax())
        told = [f"{value:.6f}" for value in (row[best], *row)]
        yield [path, classifier.classes[best], *told]


def _write(file: IO[bytes], row: Sequence[object]) -> None:
    file.write(csv_text([row]).encode("utf-8", "surrogateescape"))
