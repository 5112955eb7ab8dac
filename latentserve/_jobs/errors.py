"""Errors of dataset jobs that are about what a job reads."""


class SourceError(ValueError):
    """A source file is unusable; the message names it and says why."""
