"""YAML from strangers: plain values only, and no more of them than a person would write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tinyssl.files import read_limited

_LARGEST = 1 << 24  # bytes
_MOST = 100_000  # values
_DEEPEST = 20  # levels; a pipeline of albumentations has half as many
_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is given twice; 1e-3 is a number to it, and a date is text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which no dict takes: told by what is called below
            if key.value in seen:
                raise ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != _DATE]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(\d[\d_]*\.?|\.\d)[\d_]*[eE][-+]?\d+$", re.ASCII),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """What YAML text holds: dicts, lists and plain values; None where it holds nothing.

    Raises:
        ValueError: it is not YAML, gives a key twice, or holds what no recipe needs and a
            stranger's may: tags name types to build, an alias of an alias of ... grows without
            end, and so do depths.
    """
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError(f"anchors and aliases are not allowed{event.start_mark}")
            if getattr(event, "tag", None):
                raise ValueError(f"tags such as {event.tag} are not allowed{event.start_mark}")
            starts = isinstance(event, yaml.CollectionStartEvent)
            depth += starts - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} levels{event.start_mark}")
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too large, names types, or grows by aliases of aliases.
    """
    try:
        found = yaml.safe_load(read_limited(path, _LARGEST).decode("utf-8"))
        refuse_growing(found)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply, or in itself") from None
    return found


def refuse_growing(value: Any) -> None:
    """Raises ValueError where aliases, counted as what they stand for, make too many values."""
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        if not isinstance(part, dict | list):
            return 1
        if id(part) not in sizes:
            inner = part.values() if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size, inner))
        return sizes[id(part)]

    if size(value) > _MOST:
        raise ValueError(f"more than {_MOST:,} values")
