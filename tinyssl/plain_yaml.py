"""Safe reading of untrusted YAML: plain values only, with limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tinyssl.errors import joined_lines
from tinyssl.files import read_limited

_LARGEST = 1 << 24  # bytes
_MOST = 100_000  # values
_DEEPEST = 20  # levels; an albumentations pipeline has half as many
_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses duplicate keys, reads 1e-3 as a number and dates as text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # not hashable, which the call below reports
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
    """The content of YAML text as dicts, lists and plain values; None if there is none.

    Raises:
        ValueError: it is not YAML, has a duplicate key, or has what recipes do not need and
            untrusted files may abuse: tags, which build types, aliases, which can grow
            exponentially, and deep nesting.
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
        raise ValueError(joined_lines(error)) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too large, names types, or grows too large by aliases.
    """
    try:
        found = yaml.safe_load(read_limited(path, _LARGEST).decode("utf-8"))
        refuse_growing(found)
    except yaml.YAMLError as error:
        raise ValueError(joined_lines(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply, or in itself") from None
    return found


def refuse_growing(value: Any) -> None:
    """Raises ValueError for too many values, with aliases expanded."""
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
