"""The pictures that a report shows, with their labels and features.

n = pictures shown, d = feature width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log, progress
from tinyssl.data import Pictures, fingerprint, pictures_for
from tinyssl.device import keep_freed_memory, pick_device
from tinyssl.encoder import embed_pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.feature_file import Features, read_features, read_key, write_features
from tinyssl.labels import LabeledPaths, read_labels
from tinyssl.own_pictures import own_pictures
from tinyssl.reporting.names import short_names, shown
from tinyssl.reporting.run_facts import RunFacts
from tinyssl.rows import spaced
from tinyssl.scanning import scan
from tinyssl.weights import load_encoder

FEATURES = "report_features.npz"
_FORMAT = 1


@dataclass(frozen=True)
class Gallery:
    """n pictures with labels and features.

    Attributes:
        pictures: decoded, as the encoder takes them.
        names: short names to show.
        labels: (n,) numbers of classes; -1 for none.
        classes: names in alphabetical order, to show.
        test: (n,) True for test pictures; None if the labels have no split.
        features: (n, d), unscaled.
        total: number of pictures found; more than n where a sample is shown.
    """

    pictures: Pictures
    names: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    test: NDArray[np.bool_] | None
    features: NDArray[np.float32]
    total: int


def gather(
    facts: RunFacts,
    data: Sequence[str | Path],
    labels: str | Path | None,
    *,
    most: int,
    device: str = "auto",
    workers: int = 0,
) -> Gallery:
    """Reads pictures and labels, and computes features or reuses those of an earlier report.

    Args:
        facts: of the run.
        data: folders, pictures, lists; those of the run when empty.
        labels: a CSV path,label[,split] or a folder of class folders; its pictures are shown too.
        most: the most pictures; of more an even sample is taken, labeled ones first.
        device: auto, cpu, cuda or cuda:N.
        workers: threads that decode; 0 is one a CPU core.

    Raises:
        UsageError: no pictures there, or labels that do not fit.
        JobError: no picture can be read.
    """
    table = None if labels is None else read_labels(labels)
    known = {} if table is None else {str(path): row for row, path in enumerate(table.paths)}
    found = _find(facts, data, known)
    chosen = sample(found, set(known), most)
    with progress("reading", len(chosen)) as advance:
        pictures = pictures_for(
            facts.encoder, list(map(Path, chosen)), workers=workers, progress=advance
        )
    if len(pictures.paths) < 2:
        raise UsageError("got 1 readable picture; a report shows at least 2")
    numbers, classes, test = _labels_of(pictures.paths, known, table)
    return Gallery(
        pictures=pictures,
        names=short_names(pictures.paths),
        labels=numbers,
        classes=classes,
        test=test,
        features=_features(facts, pictures, device),
        total=len(found),
    )


def sample(paths: Sequence[str], first: set[str], most: int) -> list[str]:
    """An even sample of at most `most` paths, in order, preferring those in `first`."""
    if len(paths) <= most:
        return list(paths)
    preferred = [path for path in paths if path in first]
    others = [path for path in paths if path not in first]
    kept = spaced(preferred, most)
    return sorted(kept + spaced(others, most - len(kept)))


def _find(facts: RunFacts, data: Sequence[str | Path], known: Mapping[str, int]) -> list[str]:
    """Paths of all pictures; only the labeled ones if the run's own are gone."""
    if data:
        return sorted({str(path) for path in scan(data)} | set(known))
    try:
        own = {str(path) for path in own_pictures(facts.path)}
    except UsageError as error:
        if not known:
            raise UsageError(f"{error}; name the run's pictures with --data") from None
        log.warning(f"the pictures of the run are not shown: {error}")
        own = set()
    return sorted(own | set(known))


def _labels_of(
    paths: Sequence[str], known: Mapping[str, int], table: LabeledPaths | None
) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_] | None]:
    numbers = np.full(len(paths), -1, np.int64)
    if table is None:
        return numbers, [], None
    names = [table.labels[known[path]] if path in known else None for path in paths]
    classes = sorted({name for name in names if name is not None})
    places = {name: number for number, name in enumerate(classes)}
    numbers[:] = [-1 if name is None else places[name] for name in names]
    splits, test = table.splits, None
    if splits is not None:
        test = np.array([path in known and splits[known[path]] == "test" for path in paths])
    return numbers, [shown(name) for name in classes], test


def _features(facts: RunFacts, pictures: Pictures, device: str) -> NDArray[np.float32]:
    """Features, reused from an earlier report if encoder and pictures are unchanged."""
    kept = facts.path / FEATURES
    key = fingerprint([], f"{_FORMAT} {sorted(facts.digests.items())} {pictures.digest}")
    if kept.is_file() and read_key(kept) == key:
        return np.asarray(read_features(kept).features, np.float32)
    encoder, _ = load_encoder(facts.path)
    keep_freed_memory()
    with progress("embedding", len(pictures.paths)) as advance:
        features = embed_pictures(
            encoder, pictures.array, batch_size=64, device=pick_device(device), progress=advance
        )
    if os.access(facts.path, os.W_OK):
        _keep(kept, pictures, features, key)
    return features


def _keep(path: Path, pictures: Pictures, features: NDArray[np.float32], key: str) -> None:
    block = Features(pictures.paths, pictures.hashes, features)
    try:
        write_features(path, [block], features.shape, "float32", key)
    except JobError as error:
        log.warning(f"features are not kept for the next report: {error}")
