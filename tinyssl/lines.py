"""Lines that say what goes on, apart from who sees them.

`log` has every line, for `train.log`; `console` hands those on that the user's own settings of the
logger "tinyssl" let through.
"""

import logging

from tinyssl.errors import one_line


class _Log(logging.Logger):
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """By its own level alone: answers that are kept, as logging does, go stale here."""
        return level >= self.level


# None that logging.getLogger knows: its level is nobody's to change.
log = _Log("tinyssl", logging.DEBUG)


def as_shown(record: logging.LogRecord) -> str:
    """A line as the command line shows it."""
    prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    return prefix + one_line(record.getMessage())
