"""Errors that end a command with one line on stderr."""


class Failure(Exception):
    """The command failed: exit status 1."""


class Usage(Exception):
    """The command line is wrong in a way that argparse cannot detect: exit status 2."""


def printable(text: str) -> str:
    """Escapes unprintable characters and line breaks in a text, such as a file name."""
    # Not os.fsencode: where file names are ASCII, it fails on the letters of other texts.
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in decoded
    )
