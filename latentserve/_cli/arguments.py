"""Parsers of command-line values, for the `type` of argparse options; errors name the range."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from latentserve._urls import is_url, without_secrets


def positive(text: str) -> int:
    """Parses an integer from 1 to 2^63 - 1.

    Raises:
        argparse.ArgumentTypeError: `text` is not such an integer.
    """
    return _integer(text, 1, 2**63 - 1, "from 1 to 2^63 - 1")


def uint64(text: str) -> int:
    """Parses an integer from 0 to 2^64 - 1.

    Raises:
        argparse.ArgumentTypeError: `text` is not such an integer.
    """
    return _integer(text, 0, 2**64 - 1, "from 0 to 2^64 - 1")


def version(text: str) -> int:
    """Parses a model version: an integer from 0 (the highest version served) to 2^63 - 1.

    Raises:
        argparse.ArgumentTypeError: `text` is not such an integer.
    """
    return _integer(text, 0, 2**63 - 1, "from 0 to 2^63 - 1")


def index(text: str) -> int:
    """Parses an index: an integer from 0 to 2^31 - 1.

    Raises:
        argparse.ArgumentTypeError: `text` is not such an integer.
    """
    return _integer(text, 0, 2**31 - 1, "from 0 to 2^31 - 1")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser of integers from `low` to `high`, both included."""
    return lambda text: _integer(text, low, high, f"from {low} to {high}")


def positive_number(text: str) -> float:
    """Parses a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: `text` is not such a number.
    """
    value = number(text)
    if value > 0:
        return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted a number above 0")


def duration(text: str) -> float:
    """Parses a duration such as `90`, `90s`, `10m` or `2h`; returns seconds.

    Raises:
        argparse.ArgumentTypeError: `text` is not a duration.
    """
    parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh]?)", text, re.ASCII)
    if parts is None:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a duration such as 90s, 10m or 2h")
    return float(parts[1]) * {"m": 60.0, "h": 3600.0}.get(parts[2], 1.0)


def size(text: str) -> tuple[int, int]:
    """Parses the height and width of images, such as `512x768`.

    Raises:
        argparse.ArgumentTypeError: `text` is not such a pair.
    """
    parts = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
    height, width = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, wanted HEIGHTxWIDTH in pixels")
    return height, width


def number(text: str) -> float:
    """Parses a finite number.

    Raises:
        argparse.ArgumentTypeError: `text` is not such a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted a number")


def _integer(text: str, low: int, high: int, wanted: str) -> int:
    # int() fails on thousands of digits, with an error message that is not ours.
    value = int(text) if text.isdecimal() and len(text) < 100 else -1
    if low <= value <= high:
        return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted a whole number {wanted}")


def local_folder(text: str) -> Path:
    """Parses the path of a folder to write.

    Raises:
        argparse.ArgumentTypeError: `text` is a URL.
    """
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"got {without_secrets(text)}, wanted a folder of this host"
        )
    return Path(text)


def store_url(text: str) -> str:
    """Checks the URL of a folder in object storage.

    Raises:
        argparse.ArgumentTypeError: `text` is no URL.
    """
    if not is_url(text):
        raise argparse.ArgumentTypeError(f"got {text}, wanted a URL such as s3://bucket/runs/x")
    return text
