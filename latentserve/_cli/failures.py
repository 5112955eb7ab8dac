"""What a command says when it cannot go on, in one line."""

import os


class Failure(Exception):
    """The command failed: exit status 1."""


class Usage(Exception):
    """The command line asks for something that there is not: exit status 2."""


def reason(error: OSError) -> str:
    """What was wrong with a file, without its name and number."""
    return error.strerror or str(error) or type(error).__name__


def printable(text: str) -> str:
    """Text, for example a file's name, as one line that every stream can write."""
    decoded = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in decoded
    )
