"""Log lines, independent of who sees them.

`log` gets every line, for `train.log`; `console` forwards those that the user's settings of the
logger "tinyssl" let through.
"""

import logging

from tinyssl.errors import one_line


class _Log(logging.Logger):
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """By its own level only: the cache that logging keeps would become stale here."""
        return level >= self.level


# Not registered with logging.getLogger, so that nobody else changes its level.
log = _Log("tinyssl", logging.DEBUG)


def as_shown(record: logging.LogRecord) -> str:
    """A record as the command line shows it."""
    prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    return prefix + one_line(record.getMessage())
