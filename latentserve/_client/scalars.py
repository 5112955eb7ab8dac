"""Numbers as callers give them: Python's, NumPy's, or of any type that converts to these."""

import operator
from typing import Any

#: Longest deadline, in seconds. gRPC counts in integers, so infinity becomes a year.
LONGEST_SECONDS = 365 * 24 * 3600.0


def whole(value: Any, what: str) -> int:
    """Returns a whole number as Python's `int`.

    Args:
        value: The number: an `int`, an integer of NumPy's, or any other with `__index__`.
        what: Name of the parameter, for errors.

    Raises:
        TypeError: `value` is not a whole number; 7.0 is not one either.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what}: got {shown(value)}, wanted a whole number") from None


def within(value: Any, what: str, low: int, high: int) -> int:
    """Returns a whole number from `low` to `high`.

    Raises:
        TypeError: `value` is not a whole number.
        ValueError: `value` is out of range.
    """
    number = whole(value, what)
    if low <= number <= high:
        return number
    raise ValueError(f"{what}: got {number}, wanted {_bound(low)} to {_bound(high)}")


def int32(value: Any, what: str) -> int:
    """Returns a whole number that fits into a field of 32 bits; raises like `within`."""
    return within(value, what, -(2**31), 2**31 - 1)


def int64(value: Any, what: str) -> int:
    """Returns a whole number that fits into a field of 64 bits; raises like `within`."""
    return within(value, what, -(2**63), 2**63 - 1)


def count(value: Any, what: str) -> int:
    """Returns a count, for example of rows, from 1 to 2^63 - 1; raises like `within`."""
    number = int64(value, what)
    if number < 1:
        raise ValueError(f"{what}: got {number}, wanted at least 1")
    return number


def real(value: Any, what: str) -> float:
    """Returns a number as Python's `float`.

    Raises:
        TypeError: `value` is not a number; a string such as "7" is not one either.
    """
    if not isinstance(value, str | bytes | bytearray):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{what}: got {shown(value)}, wanted a number")


def seconds(timeout: Any) -> float:
    """Returns a deadline in seconds; infinity, for no deadline, becomes one year.

    Raises:
        TypeError: `timeout` is not a number.
        ValueError: `timeout` is negative or NaN.
    """
    number = real(timeout, "timeout")
    if number >= 0:
        return min(number, LONGEST_SECONDS)
    raise ValueError(f"timeout: got {timeout}, wanted seconds from 0 (infinity for no deadline)")


def shown(value: Any) -> str:
    """Returns a value as text for an error: its `repr` if that is short, else its type."""
    if isinstance(value, bytes | bytearray | memoryview):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__


def shortened(text: str) -> str:
    """Returns a text for an error, cut to 100 characters."""
    return text if len(text) <= 100 else f"{text[:97]}..."


def _bound(number: int) -> str:
    for bits in (31, 63, 64):
        if number == 2**bits - 1:
            return f"2^{bits} - 1"
        if number == -(2**bits):
            return f"-2^{bits}"
    return str(number)
