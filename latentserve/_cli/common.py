"""Options and formatting that several commands share."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from latentserve._cli.arguments import positive, size, uint64, whole
from latentserve._cli.connection import add_connection

#: Runs a command with its parsed options; returns the exit status.
Run = Callable[[argparse.Namespace], int]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter whose usage line has only the required arguments and `[options]`."""

    def __init__(self, prog: str, **arguments: Any):
        super().__init__(f"{prog} [options]", **arguments)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],  # noqa: ARG002 - the groups are of options, which are not shown
        prefix: str | None = None,
    ) -> None:
        """Adds the usage line, without optional arguments."""
        required = [action for action in actions if action.required or not action.option_strings]
        super().add_usage(usage, required, [], prefix)


def command(
    commands: Any, name: str, run: Run, summary: str, *examples: str, timeout: float = 60.0
) -> argparse.ArgumentParser:
    """Adds a command that calls a server, with the options of the connection.

    Args:
        commands: Subparsers to add it to.
        name: Name of the command.
        run: Runs the command and returns its exit status.
        summary: One line for the list of commands, in lower case.
        examples: Command lines for the help.
        timeout: Default of `--timeout`, in seconds.
    """
    lines = "\n".join(f"  {example}" for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=HelpFormatter,
    )
    add_connection(parser, timeout)
    parser.set_defaults(run=run)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument `images`, and `--resize`."""
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="PNG, JPEG and WebP files, folders of them, or one npy file: [N, C, H, W], "
        "[N, H, W] or [N, C*H*W], uint8 or floats in [0, 1]; - for standard input",
    )
    add_resize(parser)
    add_size(parser)


def add_resize(parser: argparse.ArgumentParser) -> None:
    """Adds `--resize`."""
    parser.add_argument(
        "--resize",
        action="store_true",
        help="crop, resize and convert image files whose size or colour mode is not the model's",
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds `--size`, the size that image files are converted to."""
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="as --resize, but to this height and width, not to the size nearest to the file's; "
        "for a model that takes images of several sizes",
    )


def add_sample_size(parser: argparse.ArgumentParser) -> None:
    """Adds `--size`, the size of images that are sampled."""
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="height and width of the images, for a model that takes several sizes (default: those "
        "that `info` shows)",
    )


def resize_of(options: argparse.Namespace) -> bool | tuple[int, int]:
    """Returns the argument `resize` of the client's methods."""
    chosen: bool | tuple[int, int] = options.size or options.resize
    return chosen


def add_scaled(parser: argparse.ArgumentParser) -> None:
    """Adds `--scaled`."""
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="latents are scaled as diffusion models expect them, by the factor that `info` shows",
    )


def add_offset(parser: argparse.ArgumentParser) -> None:
    """Adds `--offset`, an index in the seed's noise sequence."""
    parser.add_argument(
        "--offset",
        type=uint64,
        default=0,
        metavar="N",
        help="start at row N of the seed's noise sequence, to continue an earlier call "
        "(default: 0)",
    )


def add_draw(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--draw`, `--seed` and `--offset`, the options of a draw from each posterior.

    Args:
        parser: Parser of the command.
        what: What the command does with the draws, for the help.
    """
    parser.add_argument("--draw", action="store_true", help=f"{what}, with a fresh seed")
    parser.add_argument("--seed", type=uint64, metavar="N", help="as --draw, but with this seed")
    add_offset(parser)


def add_pictures(
    parser: argparse.ArgumentParser,
    default: str,
    array: str = "float32 array",
    *,
    files: bool = False,
) -> None:
    """Adds `--output`, `--as` and `--zoom` to a command that makes images.

    Args:
        parser: Parser of the command.
        default: Default of `--output`.
        array: Content of an npy file, for the help.
        files: Whether one image may also be written as a JPEG or WebP file; adds `--quality`, and
            `--unclipped`.
    """
    alone = ", one image as .jpg or .webp," if files else ""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"file to write: a grid as .png{alone} or the {array} as .npy; - for standard output "
        f"(default: {default})",
    )
    parser.add_argument(
        "--as",
        dest="format",
        choices=("png", "npy", *(("jpg", "webp") if files else ())),
        help="format to write (default: from the file's suffix; png on standard output)",
    )
    parser.add_argument(
        "--zoom",
        type=whole(1, 1000),
        metavar="N",
        help="enlargement factor of the images in the grid, 1 to 1000 (default: 2, or 1 for images "
        "of 128 pixels and more)",
    )
    if files:
        parser.add_argument(
            "--quality",
            type=whole(1, 100),
            metavar="N",
            help="quality of a JPEG or WebP file, 1 to 100 (default: 95)",
        )
        parser.add_argument(
            "--unclipped",
            action="store_true",
            help="write the decoder's values as they are to .npy, not clipped to [0, 1]",
        )


def add_columns(parser: argparse.ArgumentParser, default: str = "a nearly square grid") -> None:
    """Adds `--columns`, the width of the grid."""
    parser.add_argument(
        "--columns", type=positive, metavar="N", help=f"images per row (default: {default})"
    )


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun, such as `1 image` or `2 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(commands: Any, width: int) -> str:
    """Lists commands with their summaries, one per line.

    Replaces argparse's own list, which breaks the line after a long name such as `reconstruct`.

    Args:
        commands: Subparsers of the commands.
        width: Width of the column of names.
    """
    return "\n".join(
        f"  {name:{width}}  {parser.description[0].lower()}{parser.description[1:].rstrip('.')}"
        for name, parser in commands.choices.items()
    )
