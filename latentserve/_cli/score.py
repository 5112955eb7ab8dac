"""`score`: likelihood of images under a model, as a table, JSON lines or CSV."""

import argparse
import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli.arguments import index, uint64
from latentserve._cli.common import add_images, add_offset, command, counted, resize_of
from latentserve._cli.connection import add_model, connect
from latentserve._cli.failures import printable
from latentserve._cli.labels import add_labels, labels_of

if TYPE_CHECKING:
    from latentserve._cli.inputs import Images
    from latentserve.client import ModelInfo, Scores

_HEADINGS = {
    "elbo": "ELBO",
    "bits_per_dimension": "bits/dim",
    "reconstruction": "reconstruction",
    "kl": "KL",
    "nll": "NLL",
    "percentile": "percentile",
}


def add(commands: Any) -> None:
    """Adds the `score` command."""
    score = command(
        commands,
        "score",
        _score,
        "measure how likely images are: the negative ELBO in nats and in bits per dimension, lower "
        "is more likely",
        "latentserve score images/*.png",
        "latentserve score digits.npy --draws 1000 --seed 7 -o scores.csv",
        "latentserve score images/*.png --json | jq 'select(.percentile > 99) | .file'",
    )
    add_images(score)
    add_labels(score)
    score.add_argument(
        "--draws",
        type=index,
        default=0,
        metavar="K",
        help="also estimate the NLL by the importance-weighted bound with K draws; decodes K "
        "latents per image (default: 0, no NLL)",
    )
    score.add_argument(
        "--seed", type=uint64, metavar="N", help="seed of the draws (default: a fresh one)"
    )
    add_offset(score)
    score.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, .csv or .jsonl; - for standard output (default: print a table)",
    )
    score.add_argument(
        "--json", action="store_true", help="print or write JSON lines instead of a table or CSV"
    )
    add_model(score)


def _score(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import read_images
    from latentserve._cli.outputs import output

    target = None
    if options.output is not None:
        target = output(options, *(("jsonl",) if options.json else ("csv", "jsonl")))
    images = read_images(options.images)
    resize = resize_of(options)
    with connect(options) as client, images.named():
        scores = client.score(
            images.values,
            draws=options.draws,
            seed=options.seed,
            offset=options.offset,
            resize=resize,
            labels=labels_of(options, client),
            model=options.model,
            version=options.model_version,
        )
        model = client.model(options.model, version=options.model_version)
    dimensions = _dimensions(model, images, resize)
    key = "row" if images.files is None else "file"
    rows = [
        {key: name if images.files else int(name), **row}
        for name, row in zip(images.names, _rows(scores, dimensions), strict=True)
    ]
    if target is None:
        print(_json_lines(rows) if options.json else _table(rows, key), end="")
        return 0
    text = _json_lines(rows) if target.format == "jsonl" else _csv(rows)
    seed = "" if scores.nll is None else f", seed {scores.seed}"
    target.write(text.encode("utf-8", "surrogateescape"), f"{counted(len(rows), 'image')}{seed}")
    return 0


def _dimensions(model: "ModelInfo", images: "Images", resize: bool | tuple[int, int]) -> int | None:
    """C * H * W of the images that are scored; None of files whose size the model leaves free."""
    channels, height, width = model.image_shape
    if model.sizes is not None:
        if isinstance(resize, tuple):
            height, width = resize
        elif isinstance(images.values, list) or resize:
            return None
        elif images.values.ndim >= 3:  # rows [C*H*W] are images of the model's own size
            height, width = images.values.shape[-2:]
    return channels * height * width


def _rows(scores: "Scores", dimensions: int | None) -> Iterator[dict[str, float]]:
    """Yields the scores of each image, by name, without those that were not computed."""
    per_dimension = None if dimensions is None else scores.elbo / (dimensions * math.log(2.0))
    fields = {
        name: per_dimension if name == "bits_per_dimension" else getattr(scores, name)
        for name in _HEADINGS
    }
    arrays = {name: array for name, array in fields.items() if array is not None}
    for row in range(len(scores.elbo)):
        # Conversion by str() keeps only the digits that a float32 has.
        yield {name: float(str(array[row])) for name, array in arrays.items()}


def _table(rows: list[dict[str, Any]], key: str) -> str:
    """Formats rows as aligned columns, with a row of means for more than one image."""
    figures = [name for name in rows[0] if name != key]
    lines = [[key, *(_HEADINGS[name] for name in figures)]]
    for row in rows:
        lines.append([printable(str(row[key])), *(_figure(name, row[name]) for name in figures)])
    if len(rows) > 1:
        means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in figures}
        lines.append(["mean", *(_figure(name, mean) for name, mean in means.items())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() + "\n"
        for line in lines
    )


def _figure(name: str, value: float) -> str:
    return f"{value:.{3 if name == 'bits_per_dimension' else 2}f}"


def _json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(
        json.dumps({name: _finite(value) for name, value in row.items()}) + "\n" for row in rows
    )


def _finite(value: Any) -> Any:
    """Replaces infinity and NaN, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
