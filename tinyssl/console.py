"""Console output while work goes on: a progress bar on a terminal, plain lines elsewhere.

Lines go to the logger "tinyssl", whose level and handlers are the user's: as usual in Python,
`logging.basicConfig(level=logging.INFO)` shows them, and without it only warnings are shown. In an
interactive session (Jupyter, IPython, Python's prompt) where logging has no handlers, lines are
printed to standard error as the command line prints them. With
`logging.getLogger("tinyssl").setLevel(logging.WARNING)` neither lines nor bars are shown.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tinyssl.lines import as_shown
from tinyssl.lines import log as log  # re-exported for modules that also show progress

Advance = Callable[[int], None]

_LINE_EVERY = 15.0  # seconds between plain lines when there is no terminal

# Without emoji, since a file may be called `12:100:7.jpg`.
_CONSOLE = Console(stderr=True, highlight=False, emoji=False, force_jupyter=False)


class _ToUser(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        users = logging.getLogger("tinyssl")
        if hasattr(sys, "ps1") and not users.hasHandlers():
            if record.levelno >= (users.level or logging.INFO):
                say(as_shown(record))
        elif users.isEnabledFor(record.levelno):
            users.handle(record)


log.addHandler(_ToUser())


def say(text: str) -> None:
    """Prints a line to standard error, above a bar if one is shown."""
    _CONSOLE.print(text, markup=False, soft_wrap=True)


@contextmanager
def silence() -> Iterator[None]:
    """Hides lines and bars, for processes of a run other than the main one."""
    level = log.level
    _CONSOLE.quiet = True
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _CONSOLE.quiet = False
        log.setLevel(level)


def print_result(result: object) -> None:
    """Prints a table or a text to standard output, at least 80 columns wide."""
    console = Console(highlight=False, markup=False, emoji=False)  # names are no markup
    console.width = max(80, console.width)  # print's own width cannot be more than this
    console.print(result)


def score_table(title: str | None, columns: Sequence[str]) -> Table:
    """A table of figures without rows: a column of names, which may be folded, and these."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # the box puts a space between columns; more would not fit 80 of them
    )
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


@contextmanager
def progress(title: str, total: int, unit: str = "pictures", done: int = 0) -> Iterator[Advance]:
    """Shows how many of `total` items are finished, the speed and the time left.

    Items `done` before count as finished, but not towards the speed.

    Yields:
        A function to call with the number of newly finished items.
    """
    wanted = logging.getLogger("tinyssl").level <= logging.INFO and not _CONSOLE.quiet
    if _CONSOLE.is_terminal and not _CONSOLE.is_dumb_terminal and wanted:
        with _bar(unit) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda count: bar.update(task, advance=count)
    else:
        yield _plain_lines(title, total, unit, done)


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description:<10.18}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=_CONSOLE,
        speed_estimate_period=60,
        expand=True,
    )


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_short(speed)} {self.unit}/s" if speed else f"- {self.unit}/s")


def _plain_lines(title: str, total: int, unit: str, done: int) -> Advance:
    start = last = time.monotonic()
    before = done

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _LINE_EVERY or (done >= total and now - start >= 1):
            last = now
            rate = (done - before) / (now - start)
            left = (total - done) / rate
            log.info(f"{title}: {done:,}/{total:,} {unit}, {_short(rate)}/s, {left:,.0f} s left")

    return advance


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
