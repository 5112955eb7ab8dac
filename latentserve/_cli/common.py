"""What the parsers of the commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentserve._cli.arguments import positive
from latentserve._cli.connection import add_connection

Run = Callable[[argparse.Namespace], int]


def command(
    commands: Any, name: str, run: Run, summary: str, *examples: str, timeout: float = 60.0
) -> argparse.ArgumentParser:
    """Adds a command with the options of the connection.

    Args:
        commands: What argparse adds commands to.
        name: As it is typed.
        run: Does it and returns the exit status.
        summary: One line.
        examples: Command lines.
        timeout: The default, in seconds.
    """
    lines = "\n".join(f"  {example}" for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser, timeout)
    parser.set_defaults(run=run)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds the images that a command is about."""
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="PNG and JPEG files, folders of such, or one npy file: [N, C, H, W], [N, H, W] or "
        "[N, C*H*W], uint8 or floats in [0, 1]; - for standard input",
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="take image files of another size or colour mode and fit them",
    )


def add_pictures(
    parser: argparse.ArgumentParser, default: str, array: str = "float32 array"
) -> None:
    """Adds the options of a command that makes pictures."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"a grid as .png, or the {array} as .npy; - for standard output (default: {default})",
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=("png", "npy"),
        help="what to write (default: by the name's ending; png to standard output)",
    )
    parser.add_argument(
        "--zoom", type=positive, default=2, metavar="N", help="size of a pixel (default: 2)"
    )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Adds the width of the grid."""
    parser.add_argument("--columns", type=positive, metavar="N", help="images in a row of the grid")


def listing(commands: Any, width: int) -> str:
    """The commands with their summaries, a line for each.

    argparse's own list breaks the line after a name as long as `reconstruct`.
    """
    return "\n".join(
        f"  {name:{width}}  {parser.description[0].lower()}{parser.description[1:].rstrip('.')}"
        for name, parser in commands.choices.items()
    )
