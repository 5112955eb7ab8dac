"""The report page: a single HTML file with everything embedded, without network or scripts."""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

from training.report.captions import Captions
from training.report.data import ReportData
from training.report.projection import Projection

# Content security policy under which the page loads nothing but its embedded data.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_MAX_VALUES = 8
_MIME = {".png": "image/png", ".mp4": "video/mp4", ".gif": "image/gif"}

#: Pictures that are placed side by side where there is room.
_GROUPS = (
    ("movie.mp4",),
    ("reconstructions.png",),
    ("latent_map.png", "latent_plane.png"),
    ("samples.png", "samples_by_class.png"),
    ("curves.png", "active_units.png"),
)
_WORDS = {
    "elbo": "ELBO", "fid": "FID", "iwae": "IWAE", "kl": "KL", "nll": "NLL",
    "psnr": "PSNR", "ssim": "SSIM", "stderr": "standard error",
}  # fmt: skip
# Key, label and number of decimals of each.
_HEADLINES = (
    ("elbo", "ELBO, nats per image", 1),
    ("bits_per_dimension", "bits per dimension", 3),
    ("reconstruction", "reconstruction term", 1),
    ("kl", "KL term", 1),
    ("psnr", "PSNR of reconstructions, dB", 2),
    ("ssim", "SSIM of reconstructions", 3),
)


def write_page(
    data: ReportData, projection: Projection, files: Mapping[str, bytes], poster: bytes | None
) -> str:
    """Writes the page as HTML.

    Args:
        data: The data of the report.
        projection: The projection of its latents.
        files: Content of each picture, by file name.
        poster: A PNG to show until the movie plays; None without a movie.
    """
    captions = Captions(data, projection)
    sections = []
    for group in _GROUPS:
        present = [name for name in group if name in files]
        sections += [
            _section(
                captions.heading(name),
                _figure(name, files[name], poster, captions),
                wide=len(present) == 1,
            )
            for name in present
        ]
    tables = [
        _section(heading, _table(rows), wide=False)
        for heading, rows in (("The run", data.facts), ("Measured", list(flatten(data.metrics))))
        if rows
    ]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = escape(data.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="eyebrow">Report of a training</p>
<h1>{title}</h1>
{_headline(data)}
</header>
<main>
{"".join(sections)}{"".join(tables)}</main>
<footer>
<p>{escape(captions.closing)}</p>
</footer>
</body>
</html>
"""


def flatten(metrics: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """Yields label and value of each figure, including those in nested mappings."""
    for key, value in metrics.items():
        label = before + _label(str(key))
        if isinstance(value, Mapping):
            yield from flatten(value, f"{label}: ")
        else:
            yield label, _value(value)


def _label(key: str) -> str:
    """The name of a figure in words, such as `ELBO standard error` for `elbo_stderr`."""
    words = [_WORDS.get(word, word) for word in key.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def _value(value: object) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"
    if isinstance(value, list | tuple):
        if len(value) > _MAX_VALUES:
            return f"{len(value)} values"
        return ", ".join(_value(element) for element in value)
    return str(value)


def _headline(data: ReportData) -> str:
    """The most important figures, as a definition list."""
    rows = []
    for key, label, decimals in _HEADLINES:
        value = data.metrics.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            rows.append((label, f"{value:,.{decimals}f}"))
    rows.append(("active latent dimensions", f"{data.active.sum()} of {data.latent_dim}"))
    items = "\n".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in rows
    )
    return f'<dl class="numbers">\n{items}\n</dl>'


def _section(heading: str, content: str, *, wide: bool) -> str:
    mark = ' class="wide"' if wide else ""
    return f"<section{mark}>\n<h2>{escape(heading)}</h2>\n{content}\n</section>\n"


def _figure(name: str, content: bytes, poster: bytes | None, captions: Captions) -> str:
    alt = escape(captions.alt(name))
    source = _data_url(name, content)
    if name.endswith(".mp4"):
        still = f' poster="{_data_url("poster.png", poster)}"' if poster else ""
        shown = (
            f'<video src="{source}"{still} aria-label="{alt}" width="1200" height="720" '
            "autoplay loop muted playsinline controls></video>"
        )
    else:
        width, height = png_size(content)
        shown = f'<img src="{source}" alt="{alt}" width="{width}" height="{height}">'
    text = "\n".join(f"<p>{escape(line)}</p>" for line in captions.paragraphs(name))
    return f"<figure>\n{shown}\n<figcaption>\n{text}\n</figcaption>\n</figure>"


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG; with them the page does not reflow while it loads."""
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value in rows
    )
    return f"<table>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _data_url(name: str, content: bytes) -> str:
    return f"data:{_MIME[Path(name).suffix]};base64,{base64.b64encode(content).decode('ascii')}"
