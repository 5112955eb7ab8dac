"""The exception for exports and evaluations."""


class ExportError(Exception):
    """A check of the export or the evaluation failed; no bundle was written."""
