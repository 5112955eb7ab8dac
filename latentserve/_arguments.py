"""Types of command-line arguments that say what they got and wanted."""

import argparse


def positive(text: str) -> int:
    """Reads a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 1, None)


def uint64(text: str) -> int:
    """Reads a whole number from 0 to 2^64 - 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 0, 2**64 - 1)


def _whole(text: str, low: int, high: int | None) -> int:
    if text.isdecimal() and low <= int(text) and (high is None or int(text) <= high):
        return int(text)
    wanted = f"from {low}" if high is None else f"from {low} to 2^64 - 1"
    raise argparse.ArgumentTypeError(f"got {text}, wanted a whole number {wanted}")
