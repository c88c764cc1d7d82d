"""The model card, from a user's small YAML file and from the files of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tinyssl.errors import UsageError, did_you_mean, joined_lines
from tinyssl.plain_yaml import read_yaml
from tinyssl.reporting.names import shown, typed
from tinyssl.reporting.run_facts import RunFacts

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Card:
    """Fields of the model card that a user can fill in."""

    title: str = ""
    author: str = NOT_STATED
    data_source: str = NOT_STATED
    data_licence: str = NOT_STATED
    weights_licence: str = NOT_STATED
    intended_use: str = (
        "Features of pictures like those it was trained on: finding similar ones, grouping, and "
        "classifiers from few labels."
    )
    not_intended: str = (
        "Pictures of another domain, camera or resolution without a new check; decisions about "
        "people; anything where a wrong class can hurt, without a person who looks."
    )
    limits: str = ""


def read_card(path: str | Path | None) -> Card:
    """Reads the fields of a card; missing ones keep their defaults.

    Raises:
        UsageError: no such file, not YAML, an unknown field, or one that is not text.
    """
    if path is None:
        return Card()
    try:
        found = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"card {path} cannot be read: {joined_lines(error)}") from None
    if not isinstance(found, dict):
        raise UsageError(f"card {path} holds no fields; allowed are {', '.join(_names())}")
    for key, value in found.items():
        _refuse(path, str(key), value)
    return Card(**{str(key): value.strip() for key, value in found.items()})


def limits(facts: RunFacts, pictures: int | None) -> list[str]:
    """Limitations of a model that follow from the files of its run."""
    encoder, found = facts.encoder, []
    size, channels = encoder["image_size"], encoder["channels"]
    kind = {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")
    found.append(
        f"It sees {kind} pictures at {size} x {size} pixels ({encoder['resize']}); details "
        "smaller than a pixel of that are lost."
    )
    if pictures is not None:
        who = "It" if encoder["init"] == "random" else "Besides those of its start it"
        found.append(
            f"{who} has seen {pictures:,} pictures; what none of them shows it does not know."
        )
    if facts.result:
        found.append(
            f"It was measured on {facts.result['test']:,} test pictures; other sources were not "
            "tried."
        )
    elif facts.finetuned.get("held_out"):
        found.append("It was measured on held-out folds of its own labels only.")
    else:
        found.append("It was not measured on labels; nothing is known of its accuracy.")
    return found


def repeat_command(facts: RunFacts) -> str:
    """The command that repeats the run."""
    recipe = typed(facts.path / "recipe.yaml")
    if not facts.finetuned:
        return f"tinyssl pretrain --recipe {recipe} --out runs/again"
    base = typed(facts.finetuned.get("run", "RUN"))
    labels = typed(facts.path / "labels.csv")
    given = facts.finetuned.get("unlabeled_from", [])
    more = "".join(f" --unlabeled {typed(path)}" for path in given)
    return f"tinyssl finetune {base} --labels {labels} --recipe {recipe}{more} --out runs/again"


def start_of(facts: RunFacts) -> str:
    """The origin of the starting weights."""
    init = facts.encoder["init"]
    if init == "random":
        return "random weights: nothing of other people's pictures is in them"
    if init == "pretrained":
        told = shown(facts.encoder.get("weights") or "timm's weights for this network")
        return f"{told}; their licence and their data's apply too"
    return f"{shown(init)}; its licence and that of its data apply too"


def sources_told(facts: RunFacts) -> list[str]:
    """The sources of pictures in the recipe."""
    data: Mapping[str, Any] = facts.recipe.get("data") or {}
    return [shown(source) for source in data.get("sources") or []]


def _names() -> list[str]:
    return [field.name for field in fields(Card)]


def _refuse(path: str | Path, key: str, value: object) -> None:
    if key not in _names():
        meant = did_you_mean(key, _names())
        raise UsageError(
            f"card {path}: unknown field {key}{meant} (allowed: {', '.join(_names())})"
        )
    if not isinstance(value, str):
        raise UsageError(f"card {path}: {key}: got {str(value)[:80]!r}; give a text")
