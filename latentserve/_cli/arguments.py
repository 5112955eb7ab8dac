"""Types of command-line arguments that say what they got and wanted."""

import argparse
import math
from collections.abc import Callable


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
    return _whole(text, 0, 64)


def version(text: str) -> int:
    """Reads a whole number from 0 to 2^63 - 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 0, 63)


def index(text: str) -> int:
    """Reads a whole number from 0 to 2^31 - 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    return _whole(text, 0, 31)


def seconds(text: str) -> float:
    """Reads a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    value = number(text)
    if value > 0:
        return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted a number above 0")


def number(text: str) -> float:
    """Reads a finite number.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted a number")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Makes a type of whole numbers from `low` to `high`, both included."""

    def read(text: str) -> int:
        value = int(text) if text.isdecimal() and len(text) < 100 else -1
        if low <= value <= high:
            return value
        raise argparse.ArgumentTypeError(f"got {text}, wanted a whole number from {low} to {high}")

    return read


def _whole(text: str, low: int, bits: int | None) -> int:
    # Thousands of digits are not even converted: Python refuses to.
    value = int(text) if text.isdecimal() and len(text) < 100 else -1
    if low <= value and (bits is None or value < 2**bits):
        return value
    wanted = f"from {low}" if bits is None else f"from {low} to 2^{bits} - 1"
    raise argparse.ArgumentTypeError(f"got {text}, wanted a whole number {wanted}")
