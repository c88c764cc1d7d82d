"""Errors for the user: one line of text, and an exit status."""

import difflib
from collections.abc import Sequence
from typing import Any, Self


def one_line(text: str) -> str:
    """Untrusted text, such as file names, made safe for a terminal.

    Line breaks, control characters and bytes that are not UTF-8 are shown as escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def joined_lines(error: BaseException) -> str:
    """All of an error's text in one line; its type where it has none."""
    return " ".join((str(error) or type(error).__name__).split())


def did_you_mean(word: str, choices: Sequence[str], better: Sequence[str] = ()) -> str:
    """Such as `; did you mean epochs?`: the better choices or the closest; empty if none is."""
    near = better or difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def a_few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


class TinysslError(Exception):
    """Base of all errors that a user can cause or fix; the text is one clear line."""

    exit_status = 1


class UsageError(TinysslError, ValueError):
    """Wrong use: the text says what was given, what is allowed and what to do. Exit status 2."""

    exit_status = 2


class JobError(TinysslError, RuntimeError):
    """A job that started and cannot be finished: the text says where, and what was kept."""


class NothingReadable(JobError):
    """None of the pictures can be read; the text names the first and why."""

    @classmethod
    def of(cls, skipped: Sequence[Sequence[str]]) -> Self:
        """From the path of every picture and the reason why it was skipped."""
        path, reason = skipped[0][:2]
        return cls(f"none of the {len(skipped):,} pictures can be read; first: {path}: {reason}")


class NonFinite(JobError):
    """A number in a step, counted from 1, is infinite or NaN.

    `index` has the picture numbers of the batch.
    """

    def __init__(self, text: str, step: int, index: list[int]) -> None:
        super().__init__(f"{text} at step {step}")
        self.step = step
        self.index = index


class Interrupted(TinysslError):
    """A signal stopped the run after it was saved; the text says how to continue.

    Exit status 128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM,
    129 for a closed terminal.
    """

    def __init__(self, text: str, signum: int) -> None:
        super().__init__(text)
        self.signum = signum
        self.exit_status = 128 + signum

    def __reduce__(self) -> tuple[Any, ...]:
        """So that a pool of processes can hand it on."""
        return type(self), (str(self), self.signum)


def refuse_seed(seed: int) -> None:
    """Raises UsageError for a seed outside the range of recipes, which all libraries know."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"seed: got {seed}; give 0 to {2**31 - 1}")
