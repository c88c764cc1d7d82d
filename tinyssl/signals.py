"""Signals as requests to stop: polled by a loop, or raised to unwind."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from tinyssl.console import log
from tinyssl.errors import Interrupted

# That of a closed terminal is unknown to Windows.
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_ENDING = [s for s in (signal.SIGTERM, _HANGUP) if s is not None]
_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_signal() -> Iterator[Callable[[], int | None]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop; a second one acts at once.

    Ignored signals stay ignored, as SIGINT is for background jobs of a shell.
    """
    caught: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        log.info("stopping after this step; again to stop at once")

    with _first_of([signal.SIGINT, *_ENDING], remember):
        yield lambda: caught[0] if caught else None


@contextmanager
def unwound_by_term(text: str) -> Iterator[None]:
    """Turns the first SIGTERM or SIGHUP into an Interrupted with `text`; a second acts at once.

    So what is unfinished is removed, as after Ctrl-C.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(text, signum)

    with _first_of(_ENDING, leave):
        yield


@contextmanager
def _first_of(signals: Sequence[signal.Signals], handle: _Handler) -> Iterator[None]:
    """Has the first of these signals handled, after which its former handler is back."""

    def once(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, previous[signum])
        if signum == _HANGUP:
            _leave_terminal()
        handle(signum, frame)

    try:
        heard = [s for s in signals if signal.getsignal(s) is not signal.SIG_IGN]
        previous = {int(s): signal.signal(s, once) for s in heard}
    except ValueError:  # not the main thread, which alone handles signals
        previous = {}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _leave_terminal() -> None:
    """Sends to nowhere what would be printed on a closed terminal, where printing fails."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # a stream without a file
            number = stream.fileno()
            # A closed terminal is none any more, so not isatty.
            if stat.S_ISCHR(os.fstat(number).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
