"""The encoders that `tinyssl eval` compares, and the labels that each was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log
from tinyssl.data import Pictures
from tinyssl.describing import DescriptorFeatures
from tinyssl.device import keep_freed_memory, pick_device
from tinyssl.encoder import LOOKED_AT, Encoder, create_encoder, embed_pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.files import sha256, with_name
from tinyssl.labeled import shaped_by
from tinyssl.labeled_split import LabeledSplit, split_pictures
from tinyssl.rows import spaced_rows
from tinyssl.scoring import pixel_features
from tinyssl.weights import (
    WEIGHTS,
    load_encoder,
    load_weights,
    random_like,
    weights_file,
    widen_like,
)

FLOORS = ("raw pixels", "descriptors")  # rows that need no network
START = "start, frozen"
PLAIN_START = "start, last level"  # a checkpoint's own features, without tinyssl's further ones
_PLAIN = {"levels": 1, "components": 0, "descriptors": False}

Build = Callable[[], tuple[Encoder, dict[str, Any]]]
Embed = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Contender:
    """An encoder of the table.

    Attributes:
        name: of its row.
        build: returns it, with its description.
        taught: digests of the pictures whose labels it was trained on.
    """

    name: str
    build: Build
    taught: set[str] = field(default_factory=set)


def contenders(
    run: str | Path,
    description: dict[str, Any],
    baselines: Sequence[str | Path],
    seed: int,
    *,
    unchanged: bool,
) -> list[Contender]:
    """Random weights, the run's start, the baselines and, last, the run's own encoder.

    A start from weights has two rows: with the last level alone, and with the run's features.

    Args:
        run: a run folder.
        description: of its encoder.
        baselines: run folders, or weights of the same network.
        seed: of the random weights if the run has none.
        unchanged: the run has the weights of its start, which then gets no row of its own.

    Raises:
        UsageError: a baseline is not there.
    """
    init = description["init"]
    given = description | {"seed": description.get("seed", seed)}
    found = [Contender("random weights", partial(_random, given))]
    if not unchanged:
        found += _start_of(description, init)
    own = "pretrained" if init == "random" else "adapted"
    theirs = description | {"descriptors": False}
    if description["whiten_by"] == "all":  # such components cost ImageNet's weights in 10-shot
        theirs |= {"components": 0}
    for path in map(Path, baselines):
        taken = {*FLOORS, own, *(contender.name for contender in found)}
        whole = path.absolute()  # else a folder called `pretrained` would be the hub's weights
        weights_file(whole)  # told now, not after all others were judged
        names = (with_name(path).name, str(path), str(whole), "")
        name = next(name for name in names if name not in taken)
        if name:  # else it was given before
            found.append(Contender(name, partial(_start, theirs, str(whole)), shaped_by(whole)))
    return [*found, Contender(own, lambda: load_encoder(run), shaped_by(run))]


def _random(description: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    return random_like(description, int(description["seed"])), description


def has_weights_of(run: str | Path, init: str) -> bool:
    """Whether a run has the weights of its start, as where only a classifier was fitted."""
    if init in ("random", "pretrained"):  # also where a folder here is called so
        return False
    files = [Path(folder) / WEIGHTS for folder in (run, init)]
    return all(file.is_file() for file in files) and len({sha256(file) for file in files}) == 1


def _start_of(description: dict[str, Any], init: str) -> list[Contender]:
    if init == "random":
        return []
    if init != "pretrained" and not Path(init).exists():
        log.warning(f"the run's start {init} is no longer there; the table has no row for it")
        return []
    taught = set[str]() if init == "pretrained" else shaped_by(init)
    start = Contender(START, partial(_start, description, init), taught)
    if _is_run(init) or description | _PLAIN == description:
        return [start]
    plain = partial(_start, description | _PLAIN, init)
    return [Contender(PLAIN_START, plain, start.taught), start]


def _is_run(init: str) -> bool:
    return init != "pretrained" and (Path(init) / WEIGHTS).exists()


def _start(description: dict[str, Any], init: str) -> tuple[Encoder, dict[str, Any]]:
    """An earlier run's encoder with its own features, or weights for this architecture."""
    if _is_run(init):
        return load_encoder(init)
    pretrained = init == "pretrained"
    encoder = create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        pretrained=pretrained,
    )
    if not pretrained:
        load_weights(encoder, init)
    return encoder, description


def embedders(
    found: Sequence[Contender],
    split: LabeledSplit,
    pictures: Pictures,
    description: dict[str, Any],
    device: str,
) -> Iterator[tuple[str, Embed, NDArray[Any]]]:
    """Yields name, embedding function and suitable pictures of every row of the table."""
    chosen = pick_device(device)
    keep_freed_memory()
    yield FLOORS[0], pixel_features, pictures.array
    shown = some(pictures.array, ~split.test, LOOKED_AT)
    described = DescriptorFeatures(shown, description["mean"], description["std"], chosen)
    yield FLOORS[1], described, pictures.array
    for contender in found:
        try:
            encoder, own = contender.build()
        except (JobError, UsageError) as error:  # the start is gone, or came from a hub
            if contender.name not in (START, PLAIN_START):
                raise
            log.warning(f"the table has no row for {contender.name!r}: {error}")
            continue
        array = split_pictures(split, own).array
        if not encoder.standardized:
            # A network built for this table has one level only; it gets the same features.
            encoder = widen_like(encoder, own, some(array, ~split.test, LOOKED_AT))
        yield contender.name, partial(embed_pictures, encoder, device=chosen), array


def some(pictures: NDArray[Any], wanted: NDArray[np.bool_], most: int) -> NDArray[Any]:
    """At most `most`, evenly spaced, of the wanted pictures, which are read and copied."""
    rows = np.flatnonzero(wanted)
    return pictures[rows[spaced_rows(len(rows), most)]]
