"""`tinyssl predict`: the classes of pictures, a row of a CSV each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.classifier import Classifier, load_classifier
from tinyssl.console import log, progress
from tinyssl.data import scan
from tinyssl.encoder import embed_pictures
from tinyssl.errors import UsageError
from tinyssl.files import atomic
from tinyssl.model import Model, load
from tinyssl.picture import Unreadable, decode, quiet, resize, to_channels

_CHUNK = 256


@dataclass(frozen=True)
class Predicted:
    """What `predict` did.

    Attributes:
        out: the CSV.
        pictures: rows in it.
        skipped: pictures that could not be read, with the reason.
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
) -> Predicted:
    """Writes `path,label,probability` and the probability of every class, `p(CLASS)`, as a CSV.

    Pictures are read in chunks, so that their number is not limited by memory. Those that cannot
    be read are told and left out.

    Args:
        run: a fine-tuned run folder.
        pictures: a folder, a picture, a .txt/.csv list, or several of these.
        out: the CSV; replaced once all rows are there.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: no classifier at `run`, or no pictures.
        JobError: the CSV cannot be written.
    """
    classifier = load_classifier(run)
    if classifier is None:
        raise UsageError(
            f"{run} has no classifier; make one with: tinyssl finetune {run} --labels labels.csv"
        )
    model = load(run, device)
    sources = [pictures] if isinstance(pictures, str | Path) else list(pictures)
    if not sources:
        raise UsageError("no pictures given; name a folder, a picture or a .txt/.csv list of paths")
    paths, target = scan(sources), Path(out)
    skipped: list[tuple[str, str]] = []
    with progress("predicting", len(paths)) as advance, atomic(target) as file:
        _write(file, ["path", "label", "probability", *(f"p({c})" for c in classifier.classes)])
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for row in _rows(chunk, model, classifier, skipped):
                _write(file, row)
            advance(len(chunk))
    for path, reason in skipped:
        log.warning(f"skipped {path}: {reason}")
    return Predicted(target, len(paths) - len(skipped), skipped)


def _rows(
    paths: Sequence[Path], model: Model, classifier: Classifier, skipped: list[tuple[str, str]]
) -> Iterator[list[object]]:
    with quiet(), ThreadPoolExecutor() as pool:
        read = list(pool.map(partial(_read, model), paths))
    found = [(p, r) for p, r in zip(paths, read, strict=True) if not isinstance(r, str)]
    skipped += [(str(p), r) for p, r in zip(paths, read, strict=True) if isinstance(r, str)]
    if not found:
        return
    features = _features(model, [array for _, array in found])
    shares = classifier.probabilities(torch.from_numpy(features)).numpy()
    for (path, _), row in zip(found, shares, strict=True):
        best = int(row.argmax())
        told = [f"{value:.6f}" for value in (row[best], *row)]
        yield [path, classifier.classes[best], *told]


def _read(model: Model, path: Path) -> NDArray[Any] | str:
    """The picture as the encoder takes it, or why there is none."""
    channels = model.encoder.channels
    try:
        picture = to_channels(decode(path, channels), channels)
        return resize(picture, model.image_size, model.description["resize"])
    except OSError as error:
        return error.strerror or str(error)
    except Unreadable as error:
        return str(error)


def _features(model: Model, pictures: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Pictures of 8 and of 16 bits may be mixed: each kind is scaled by its own maximum."""
    features = np.empty((len(pictures), model.width), np.float32)
    for dtype in sorted({picture.dtype for picture in pictures}, key=str):
        rows = [row for row, picture in enumerate(pictures) if picture.dtype == dtype]
        stacked = np.stack([pictures[row] for row in rows])
        features[rows] = embed_pictures(model.encoder, stacked, device=model.device)
    return features


def _write(file: IO[bytes], row: Sequence[object]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    file.write(text.getvalue().encode("utf-8", "surrogateescape"))
