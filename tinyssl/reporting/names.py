"""Names and paths prepared for the page."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from tinyssl import files


def shown(text: object) -> str:
    """The text as valid Unicode: bytes of other encodings become the replacement character."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def typed(path: object) -> str:
    """A path as a shell takes it."""
    return files.typed(shown(path))


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folder that all of them share; whole where drives of Windows differ."""
    folders = [Path(path).parent for path in paths]
    if len({folder.anchor for folder in folders}) > 1:
        return [shown(path) for path in paths]
    root = os.path.commonpath(folders)
    return [shown(os.path.relpath(path, root)) for path in paths]


def for_plot(text: object) -> str:
    """The text for a chart, with `<`, `>` and `&` escaped, since plotly interprets tags."""
    return html.escape(shown(text), quote=False)


def unbroken(text: object) -> str:
    """The text with no-break spaces in figures such as `5.0 ± 1.2 %`."""
    return (
        str(text)
        .replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        .replace(" %", "\N{NO-BREAK SPACE}%")
    )
