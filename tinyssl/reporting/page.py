"""HTML pages from templates, each in a single file, with all text escaped."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyssl.errors import UsageError
from tinyssl.files import refuse_unmarked, writable, write_text
from tinyssl.reporting.names import shown, unbroken

NEEDED = ("jinja2", "plotly")
_MARK = b'<meta name="generator" content="tinyssl '  # of base.html.j2


def missing() -> list[str]:
    """The libraries of the extra `report` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def check_installed() -> None:
    """Raises UsageError, saying what to install, where the extra `report` is missing."""
    absent = missing()
    if absent:
        raise UsageError(
            f'a report needs {" and ".join(absent)}; install with: pip install "tinyssl[report]"'
        )


def replaceable(out: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Checks that a page may be written or replaced, and returns its path.

    Args:
        out: the page.
        inputs: files that are read and must not be replaced.

    Raises:
        UsageError: as `writable` does, or a page of another program is there.
    """
    return refuse_unmarked(writable(Path(out), ".html", inputs), _MARK)


def write_page(template: str, context: Mapping[str, Any], out: Path) -> None:
    """Fills in a template and writes it.

    Args:
        template: name of a file in `templates`.
        context: its variables.
        out: replaced once the page is complete.

    Raises:
        JobError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tinyssl.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "unbroken": unbroken}
    inline = {name: Markup(_text(name)) for name in ("style.css", "page.js", "map.js")}
    page = environment.get_template(template).render(
        context, inline=inline, plotly=Markup(_plotly())
    )
    write_text(out, page)


def _text(name: str) -> str:
    return files("tinyssl.reporting").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's script, compressed to 2 MB of base64 from 4.8 MB; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()
