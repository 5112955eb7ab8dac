"""What can go wrong in an export."""


class ExportError(Exception):
    """The graphs do not pass a check; no bundle was written."""
