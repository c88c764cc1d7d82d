"""File and class names as a page may show them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def shown(text: object) -> str:
    """The text as valid Unicode: bytes of other encodings become the replacement character."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def typed(path: object) -> str:
    """A path as a shell takes it."""
    return shlex.quote(shown(path))


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folder that all of them share."""
    if len(paths) < 2:
        return [shown(Path(path).name) for path in paths]
    root = os.path.commonpath([Path(path).parent for path in paths])
    return [shown(os.path.relpath(path, root)) for path in paths]


def for_plot(text: object) -> str:
    """The text for a chart: plotly reads tags in it, so `<` and `&` become entities."""
    return shown(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unbroken(text: object) -> str:
    """The text with figures that no line end parts from their sign: `5.0 ± 1.2 %`."""
    return (
        str(text)
        .replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        .replace(" %", "\N{NO-BREAK SPACE}%")
    )
