"""What the user is told when something cannot go on: one line, and an exit status."""


class TinysslError(Exception):
    """Base of every error that a user can cause or mend; its text is one clear line."""

    exit_status = 1


class UsageError(TinysslError, ValueError):
    """Wrong use: the text says what was given, what is allowed and what to do. Exit status 2."""

    exit_status = 2


class JobError(TinysslError, RuntimeError):
    """A job that began and cannot be finished: the text says where, and what was kept."""
