"""Lines that say what goes on, apart from who sees them.

`log` has every line, for `train.log`; `console` hands those on that the user's own settings of the
logger "tinyssl" let through.
"""

import logging

from tinyssl.errors import one_line

# None that logging.getLogger knows: its level is nobody's to change.
log = logging.Logger("tinyssl", logging.DEBUG)


def as_shown(record: logging.LogRecord) -> str:
    """A line as the command line shows it."""
    prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    return prefix + one_line(record.getMessage())
